//! Relation maps (`relmap_redo`, utils/cache/relmapper.c).

use super::draft::Draft;
use crate::error::IngestError;
use bytes::Bytes;
use zenith_pgformat::rel::GLOBAL_TABLESPACE;
use zenith_pgformat::relmap::RelMap;
use zenith_pgformat::wal::relmap;

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    let update = relmap::parse(draft.record)?;
    RelMap::decode(&update.map).map_err(|e| draft.error(e))?;
    if update.spc != GLOBAL_TABLESPACE {
        draft.ensure_database(update.spc, update.db)?;
    }
    draft.set_rel_map(update.spc, update.db, Some(Bytes::copy_from_slice(&update.map)))
}
