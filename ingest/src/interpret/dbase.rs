//! Databases (`dbase_redo`, commands/dbcommands.c).

use super::draft::Draft;
use crate::error::IngestError;
use crate::model::Alias;
use zenith_pgformat::wal::dbase::{self, DbaseRecord};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match dbase::parse(draft.record)? {
        DbaseRecord::CreateFileCopy { target, source } => {
            // The copy is the source as of this record, page for page; only the relation map is small enough to copy.
            // A source that is gone (dropped later in a fuzzy window) copies nothing.
            let alias = draft.database_exists(source.spc, source.db).then_some(Alias {
                spc: source.spc,
                db: source.db,
                lsn: draft.record.end,
            });
            let map = if alias.is_some() { draft.rel_map(source.spc, source.db)? } else { None };
            draft.create_database(target.spc, target.db, alias)?;
            draft.set_rel_map(target.spc, target.db, map)
        }
        // Relation map, relations and pages follow as records of their own; an existing directory is taken over.
        DbaseRecord::CreateWalLog(target) => draft.ensure_database(target.spc, target.db),
        DbaseRecord::Drop { db, tablespaces } => {
            draft.forget_invalid_pages_of_database(db);
            for spc in tablespaces {
                if draft.database_exists(spc, db) {
                    draft.drop_database(spc, db)?;
                    draft.set_rel_map(spc, db, None)?;
                }
            }
            Ok(())
        }
    }
}
