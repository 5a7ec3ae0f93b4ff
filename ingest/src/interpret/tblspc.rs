//! Tablespaces (`tblspc_redo`, commands/tablespace.c).

use super::draft::Draft;
use crate::error::IngestError;
use crate::model::Tablespace;
use zenith_pgformat::wal::tblspc::{self, TblspcRecord};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match tblspc::parse(draft.record)? {
        TblspcRecord::Create { spc, path } => {
            let location = String::from_utf8(path)
                .map_err(|_| draft.error(format!("the location of tablespace {spc} is not UTF-8")))?;
            draft.tablespace(spc, Some(Tablespace { location }.encode()))
        }
        TblspcRecord::Drop { spc } => {
            // It was empty when it was dropped: only directories without relations are left in it.
            for db in draft.databases_in(spc) {
                draft.drop_database(spc, db)?;
            }
            draft.tablespace(spc, None)
        }
    }
}
