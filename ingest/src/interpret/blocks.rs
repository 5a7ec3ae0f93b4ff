//! Block references, the same for all resource managers: a value for each block, and the growth that comes with
//! blocks past the end.
//!
//! An applied full-page image is stored as the page itself, not as a record that carries the image: redo restores it
//! and, but for a few records (`zenith_redo::stamps::image_is_final`) that are kept as records, does nothing more to
//! the block (`BLK_RESTORED`), so the page is the whole effect; it is read without a redo
//! process; the hole costs nothing in a compressed layer; and images that the server compressed (pglz above all) come
//! out smaller decompressed, for the layer compresses them among their neighbours.

use super::draft::Draft;
use crate::error::IngestError;
use crate::model::RelEvent;
use bytes::Bytes;
use std::collections::BTreeMap;
use zenith_layers::{Key, Value};
use zenith_pgformat::page;
use zenith_pgformat::wal::heap::XLOG_HEAP2_VISIBLE;
use zenith_pgformat::wal::{BlockImage, BlockRef, RmgrId, image, trim};
use zenith_pgformat::{Fork, Lsn, Page, RelNode};
use zenith_redo::native::Edit;
use zenith_redo::stamps;

/// `XLOG_GIN_SPLIT`, access/ginxlog.h.
const GIN_SPLIT: u8 = 0x30;

/// A value for every block that the record refers to.
pub(crate) fn interpret(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    let record = draft.record;
    if record.blocks.is_empty() {
        return Ok(());
    }
    let missing = missing_blocks(draft)?;
    grow(draft)?;
    for (index, block) in record.blocks.iter().enumerate() {
        if missing.contains(&index) {
            // A free-space map is a hint; nothing depends on it.
            if block.fork != Fork::Fsm {
                draft.invalid_page(block.node, block.fork, block.block)?;
            }
            continue;
        }
        let value = value(draft, index, block)?;
        draft.put(Key::rel_block(block.node, block.fork, block.block), value)?;
    }
    Ok(())
}

/// Images, for records that are nothing else (`XLOG_FPI`, `XLOG_FPI_FOR_HINT`). Blocks without one are skipped.
pub(crate) fn interpret_images(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    grow(draft)?;
    for block in &draft.record.blocks {
        if let Some(image) = applied_image(block) {
            let page = restored(draft, image)?;
            draft.put(Key::rel_block(block.node, block.fork, block.block), page)?;
        }
    }
    Ok(())
}

fn applied_image(block: &BlockRef) -> Option<&BlockImage> {
    block.image.as_ref().filter(|image| image.apply)
}

/// Whether redo of this reference may extend the fork (`XLogReadBufferExtended`): an image or an initialisation, and
/// the map page of a VISIBLE record, which is read with `RBM_ZERO_ON_ERROR`.
fn may_extend(draft: &Draft<'_>, block: &BlockRef) -> bool {
    block.starts_history() || is_visible_map(draft, block)
}

fn is_visible_map(draft: &Draft<'_>, block: &BlockRef) -> bool {
    let record = draft.record;
    record.rmgr == RmgrId::HEAP2 && record.op() == XLOG_HEAP2_VISIBLE && block.id == 0
}

/// The references whose page does not exist and that do not bring it.
fn missing_blocks(draft: &Draft<'_>) -> Result<Vec<usize>, IngestError> {
    let mut missing = Vec::new();
    for (index, block) in draft.record.blocks.iter().enumerate() {
        if may_extend(draft, block) {
            continue;
        }
        let size = draft.rel_size(block.node, block.fork)?;
        if size.is_none_or(|size| block.block >= size.blocks) {
            missing.push(index);
        }
    }
    Ok(missing)
}

/// Extends forks up to the blocks that the record brings, and notes the blocks that were skipped: growth is not
/// logged block by block, so they begin as zeros.
fn grow(draft: &mut Draft<'_>) -> Result<(), IngestError> {
    let record = draft.record;
    let mut brought: BTreeMap<(RelNode, Fork), Vec<(u32, bool)>> = BTreeMap::new();
    for block in &record.blocks {
        if !may_extend(draft, block) {
            continue;
        }
        let size = draft.rel_size(block.node, block.fork)?;
        if size.is_none_or(|size| block.block >= size.blocks) {
            let starts = block.starts_history();
            brought.entry((block.node, block.fork)).or_default().push((block.block, starts));
        }
    }
    for ((node, fork), mut blocks) in brought {
        blocks.sort_unstable();
        let mut size = draft.ensure_fork(node, fork)?;
        let mut gap: Option<(u32, u32)> = None;
        for (block, starts) in blocks {
            let length =
                block.checked_add(1).ok_or_else(|| draft.error("a block number past the last one"))?;
            // Without an image or an initialisation the block itself begins as zeros too.
            let zeros_to = if starts { block } else { length };
            if zeros_to > size.blocks {
                let from = gap.map_or(size.blocks, |(from, _)| from);
                gap = Some((from, zeros_to));
            }
            size.blocks = size.blocks.max(length);
        }
        if let Some((from, to)) = gap {
            size.last_gap = record.end;
            draft.rel_event(node, fork, RelEvent::Gap { from, to })?;
        }
        draft.set_rel_size(node, fork, Some(size))?;
    }
    Ok(())
}

fn value(draft: &Draft<'_>, index: usize, block: &BlockRef) -> Result<Value, IngestError> {
    let record = draft.record;
    let image = applied_image(block);
    if let Some(image) = image
        && stamps::image_is_final(record.rmgr, record.info, block.id)
    {
        return restored(draft, image);
    }
    if image.is_none() && record.rmgr == RmgrId::GIN && record.op() == GIN_SPLIT && block.id == 3 {
        return Ok(Value::Edit(Edit::GinFinishSplit.encode()));
    }
    let mut trimmed = trim::for_block(record, index);
    if trimmed.as_ptr() == record.raw.as_ptr() {
        // A copy of its own: a record that needs no trimming is a slice of the segment it was read from.
        trimmed = Bytes::copy_from_slice(&trimmed);
    }
    Ok(if image.is_some() || block.will_init { Value::InitRecord(trimmed) } else { Value::Record(trimmed) })
}

/// The page as redo leaves it: stamped with the record's end unless it is new.
fn restored(draft: &Draft<'_>, image: &BlockImage) -> Result<Value, IngestError> {
    let mut restored: Box<Page> = image::restore(image).map_err(|e| draft.error(e))?;
    let end: Lsn = draft.record.end;
    if page::is_all_zeros(&restored) {
        return Ok(Value::Page(Bytes::new()));
    }
    if !page::is_new(&restored) {
        page::set_lsn(&mut restored, end);
    }
    let bytes: Box<[u8]> = restored;
    Ok(Value::Page(Bytes::from(bytes)))
}
