//! Many pages of one snapshot, whether they exist or not.

use crate::error::ReadError;
use crate::pages::{BlockRange, MAX_BLOCKS};
use crate::snapshot::Snapshot;
use bytes::Bytes;
use futures::stream::{StreamExt, TryStreamExt, iter};
use std::collections::BTreeMap;
use zenith_layers::Key;
use zenith_pgformat::{Fork, RelNode};

/// Forks whose length is looked up at the same time.
const PARALLEL: usize = 16;

/// A page, `None` where the fork does not reach so far, or why it cannot be read.
pub(super) type Found = Result<Option<Bytes>, String>;

/// Reads blocks of relations, in the order of their keys.
pub(super) async fn read(snapshot: &Snapshot, keys: &[Key]) -> Result<Vec<(Key, Found)>, ReadError> {
    let lengths = lengths(snapshot, keys).await?;
    let mut found = Vec::with_capacity(keys.len());
    let mut ranges: Vec<BlockRange> = Vec::new();
    for key in keys {
        let Some(fork) = Fork::from_number(key.fork) else { continue };
        let node = key.node();
        if lengths.get(&(node, fork)).is_none_or(|blocks| key.block >= *blocks) {
            found.push((*key, Ok(None)));
            continue;
        }
        match ranges.last_mut() {
            Some(last) if follows(last, node, fork, key.block) => last.count += 1,
            _ => ranges.push(BlockRange { node, fork, from: key.block, count: 1 }),
        }
    }
    for batch in batches(ranges) {
        read_batch(snapshot, &batch, &mut found).await?;
    }
    found.sort_by_key(|(key, _)| *key);
    Ok(found)
}

fn follows(range: &BlockRange, node: RelNode, fork: Fork, block: u32) -> bool {
    let next = range.from.checked_add(range.count);
    (range.node, range.fork, next) == (node, fork, Some(block)) && range.count < MAX_BLOCKS
}

/// Ranges that are read together.
fn batches(ranges: Vec<BlockRange>) -> Vec<Vec<BlockRange>> {
    let mut batches: Vec<Vec<BlockRange>> = Vec::new();
    let mut room = 0;
    for range in ranges {
        match batches.last_mut().filter(|_| range.count <= room) {
            Some(batch) => {
                room -= range.count;
                batch.push(range);
            }
            None => {
                room = MAX_BLOCKS.saturating_sub(range.count);
                batches.push(vec![range]);
            }
        }
    }
    batches
}

/// All pages of a batch at once; one by one when one of them cannot be read.
async fn read_batch(
    snapshot: &Snapshot,
    batch: &[BlockRange],
    found: &mut Vec<(Key, Found)>,
) -> Result<(), ReadError> {
    let keys = batch.iter().flat_map(|range| {
        (0..range.count).map(|at| Key::rel_block(range.node, range.fork, range.from.saturating_add(at)))
    });
    match snapshot.page_ranges(batch).await {
        Ok(pages) => found.extend(keys.zip(pages.into_iter().map(|page| Ok(Some(page))))),
        Err(error) if is_about_a_page(&error) => {
            for key in keys {
                let Some(fork) = Fork::from_number(key.fork) else { continue };
                let page = match snapshot.pages(key.node(), fork, key.block, 1).await {
                    Ok(pages) => Ok(pages.into_iter().next()),
                    Err(error) if is_about_a_page(&error) => Err(error.to_string()),
                    Err(error) => return Err(error),
                };
                found.push((key, page));
            }
        }
        Err(error) => return Err(error),
    }
    Ok(())
}

/// Whether another page may still be read.
fn is_about_a_page(error: &ReadError) -> bool {
    match error {
        ReadError::LostBase { .. } | ReadError::BadValue { .. } | ReadError::PageFromTheFuture { .. } => true,
        ReadError::Redo { source, .. } => !matches!(
            source,
            zenith_redo::RedoError::Unavailable { .. } | zenith_redo::RedoError::ShuttingDown { .. }
        ),
        _ => false,
    }
}

/// The lengths of the forks that exist.
async fn lengths(snapshot: &Snapshot, keys: &[Key]) -> Result<BTreeMap<(RelNode, Fork), u32>, ReadError> {
    let mut forks: Vec<(RelNode, Fork)> =
        keys.iter().filter_map(|key| Some((key.node(), Fork::from_number(key.fork)?))).collect();
    forks.dedup();
    let lengths = iter(forks).map(|(node, fork)| async move {
        let blocks = snapshot.rel_size(node, fork).await?;
        Ok::<_, ReadError>(blocks.map(|blocks| ((node, fork), blocks)))
    });
    let lengths: Vec<_> = lengths.buffered(PARALLEL).try_collect().await?;
    Ok(lengths.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_holds_no_more_blocks_than_may_be_read_at_once() {
        let node = RelNode { spc: 1663, db: 5, rel: 16384 };
        let range = |count| BlockRange { node, fork: Fork::Main, from: 0, count };
        let sizes = |ranges: &[u32]| -> Vec<Vec<u32>> {
            let ranges = ranges.iter().map(|count| range(*count)).collect();
            batches(ranges).iter().map(|batch| batch.iter().map(|range| range.count).collect()).collect()
        };
        assert_eq!(sizes(&[1000, 24, 1, 1024, 5]), [vec![1000, 24], vec![1], vec![1024], vec![5]]);
        assert!(follows(&range(3), node, Fork::Main, 3) && !follows(&range(3), node, Fork::Vm, 3));
        assert!(
            !follows(&range(3), node, Fork::Main, 4)
                && !follows(&range(MAX_BLOCKS), node, Fork::Main, MAX_BLOCKS)
        );
    }
}
