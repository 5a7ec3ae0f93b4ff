//! Creation and truncation of forks (`smgr_redo`, catalog/storage.c).

use super::draft::Draft;
use crate::error::IngestError;
use crate::model::{RelEvent, RelSize};
use zenith_layers::{Key, Value};
use zenith_pgformat::wal::smgr::{self, SMGR_TRUNCATE_FSM, SMGR_TRUNCATE_HEAP, SMGR_TRUNCATE_VM, SmgrRecord};
use zenith_pgformat::{Fork, RelNode};
use zenith_redo::native::{Edit, HEAP_BLOCKS_PER_MAP_PAGE};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    match smgr::parse(draft.record)? {
        SmgrRecord::Create { node, fork } => draft.ensure_fork(node, fork).map(|_| ()),
        SmgrRecord::Truncate { node, blocks, flags } => truncate(draft, node, blocks, flags),
    }
}

fn truncate(draft: &mut Draft<'_>, node: RelNode, blocks: u32, flags: u32) -> Result<(), IngestError> {
    let main = draft.ensure_fork(node, Fork::Main)?;
    if flags & SMGR_TRUNCATE_HEAP != 0 {
        cut(draft, node, Fork::Main, main, blocks)?;
        draft.forget_invalid_pages(node, Fork::Main, blocks);
    }
    if flags & SMGR_TRUNCATE_FSM != 0
        && let Some(size) = draft.rel_size(node, Fork::Fsm)?
    {
        // PostgreSQL keeps the part of the map that speaks of the remaining blocks; a map that promises space in
        // blocks that are gone is worse than none, and a hint may be missing.
        cut(draft, node, Fork::Fsm, size, 0)?;
    }
    if flags & SMGR_TRUNCATE_VM != 0
        && let Some(size) = draft.rel_size(node, Fork::Vm)?
    {
        truncate_visibility(draft, node, size, blocks)?;
    }
    Ok(())
}

/// `visibilitymap_prepare_truncate`: the last map page that stays loses the bits of the blocks that are gone.
fn truncate_visibility(
    draft: &mut Draft<'_>,
    node: RelNode,
    size: RelSize,
    heap_blocks: u32,
) -> Result<(), IngestError> {
    let (page, within) = (heap_blocks / HEAP_BLOCKS_PER_MAP_PAGE, heap_blocks % HEAP_BLOCKS_PER_MAP_PAGE);
    if within == 0 {
        return cut(draft, node, Fork::Vm, size, page);
    }
    if page >= size.blocks {
        return Ok(());
    }
    let edit = Edit::TruncateVisibility { first_removed: within as u16 };
    draft.put(Key::rel_block(node, Fork::Vm, page), Value::Edit(edit.encode()))?;
    cut(draft, node, Fork::Vm, size, page + 1)
}

/// Cuts a fork; one that is shorter already stays (`mdtruncate` in recovery).
fn cut(draft: &mut Draft<'_>, node: RelNode, fork: Fork, size: RelSize, to: u32) -> Result<(), IngestError> {
    if to >= size.blocks {
        return Ok(());
    }
    draft.rel_event(node, fork, RelEvent::Truncated { to })?;
    let cut = RelSize { blocks: to, last_truncation: draft.record.end, ..size };
    draft.set_rel_size(node, fork, Some(cut))
}
