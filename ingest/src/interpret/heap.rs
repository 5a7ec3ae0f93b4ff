//! Heap records: their blocks, and the visibility map that they clear without naming it (heapam.c,
//! visibilitymap.c).

use super::{blocks, draft::Draft};
use crate::error::IngestError;
use std::collections::BTreeMap;
use zenith_layers::{Key, Value};
use zenith_pgformat::wal::heap;
use zenith_pgformat::{Fork, RelNode};
use zenith_redo::native::{Edit, HEAP_BLOCKS_PER_MAP_PAGE};

pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    let parsed = heap::parse(draft.record)?;
    blocks::interpret(draft)?;
    // Both blocks of an update may lie on one map page: one edit, for there is one value a key and LSN.
    let mut pages: BTreeMap<(RelNode, u32), Vec<(u16, u8)>> = BTreeMap::new();
    for clear in parsed.clears {
        let (page, within) =
            (clear.heap_block / HEAP_BLOCKS_PER_MAP_PAGE, clear.heap_block % HEAP_BLOCKS_PER_MAP_PAGE);
        pages.entry((clear.node, page)).or_default().push((within as u16, clear.bits));
    }
    for ((node, page), blocks) in pages {
        // Redo would make a map that does not reach so far longer, by pages without a bit set. A page that is not
        // there says the same.
        if draft.rel_size(node, Fork::Vm)?.is_some_and(|size| page < size.blocks) {
            let edit = Edit::ClearVisibility { blocks };
            draft.put(Key::rel_block(node, Fork::Vm, page), Value::Edit(edit.encode()))?;
        }
    }
    Ok(())
}
