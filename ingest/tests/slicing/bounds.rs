//! How much slicing holds in memory, and how soon it can be stopped.

use crate::handmade::*;
use bytes::Bytes;
use zenith_ingest::slicer::{SlicerOptions, Stopped};
use zenith_pgformat::wal::{BlockImage, BlockRef, RmgrId};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{BLCKSZ, Fork, RelNode};

/// `XLR_MAX_BLOCK_ID` and 0.
const BLOCKS_MAX: u32 = 33;

/// Full-page images, each a few bytes in the WAL (the rest is a hole) and a whole page in memory.
fn images(wal: &mut Wal, rel: u32, first: u32) {
    let block = |id: u32| {
        let mut bytes = vec![0; 40];
        bytes[12..20].copy_from_slice(&[24, 0, 0xF0, 0x1F, 0xF0, 0x1F, 4, 32]);
        bytes[24..].fill(id as u8);
        let image = BlockImage {
            hole_offset: 24,
            hole_length: (BLCKSZ - bytes.len()) as u16,
            bytes: Bytes::from(bytes),
            info: 0x03,
            apply: true,
        };
        BlockRef {
            id: id as u8,
            node: RelNode { spc: 1663, db: 5, rel },
            fork: Fork::Main,
            block: first + id,
            will_init: false,
            image: Some(image),
            data: None,
        }
    };
    let blocks: Vec<BlockRef> = (0..BLOCKS_MAX).map(block).collect();
    wal.with_blocks(RmgrId::XLOG, FPI, &blocks);
}

#[tokio::test]
async fn the_arena_never_holds_more_than_its_bound_and_one_record_however_many_images_come() {
    let mut wal = Wal::new();
    let (whole, bounded) = (timeline_at(&wal, 50).await, timeline_at(&wal, 51).await);
    for record in 0..96 {
        // Two relations at a time, so that sizes are loaded, changed and asked for again over many commits.
        images(&mut wal, 20_000 + record % 2, record / 2 * BLOCKS_MAX);
        wal.commit();
    }
    let segments = wal.segments();
    assert_eq!(segments.len(), 1, "all of it is one batch");
    for timeline in [&whole, &bounded] {
        archive(timeline, &segments, &[2]).await;
    }
    let arena_bytes = 1 << 20;
    let options = SlicerOptions { arena_bytes, ..SlicerOptions::default() };
    let report = bounded.slicer(options).await.run_once().await.expect("sliced");
    let pages = 96 * BLOCKS_MAX as usize * BLCKSZ;
    assert!(report.commits as usize >= pages / (arena_bytes + BLOCKS_MAX as usize * BLCKSZ), "{report:?}");
    let (root, _) = bounded.layers().await;
    for layer in
        bounded.manifest.layers(&root).await.expect("layers").iter().filter(|layer| layer.base.is_none())
    {
        let most = arena_bytes / BLCKSZ + BLOCKS_MAX as usize + 8;
        assert!(layer.rows as usize <= most, "{} rows in one commit", layer.rows);
    }
    let report = run(&whole).await.expect("sliced");
    assert_eq!(report.commits, 1, "the default arena holds all of it");
    assert_eq!(whole.all_changes().await, bounded.all_changes().await);
}

#[tokio::test]
async fn a_long_backlog_is_sliced_in_pieces_of_a_few_megabytes_between_which_it_can_be_stopped() {
    let mut wal = Wal::with_segments_of(WalSegSize::new(32 << 20).expect("size"));
    let timeline = timeline_at(&wal, 52).await;
    for _ in 0..240 {
        wal.commit();
        wal.writer.append(RmgrId::XLOG, NOOP, 0, &[7; 100_000]);
    }
    let begun = wal.checkpoint.lsn;
    let end = wal.commit().end;
    let segments = wal.segments();
    assert_eq!(segments.len(), 1);
    archive(&timeline, &segments, &[2]).await;
    let mut slicer = timeline.slicer(SlicerOptions::default()).await;
    let mut asked = 0;
    let stop = || {
        asked += 1;
        asked > 4
    };
    let stopped = slicer.follow(stop, |_| {}).await.expect("stopped");
    assert_eq!(stopped, Stopped::Asked);
    // What was sliced is committed, and it is a part.
    let position = slicer.position();
    assert!(position > begun && position.since(begun) < 3 * (5 << 20), "{position}");
    assert_eq!(sliced(&timeline).await, position);
    let report = run(&timeline).await.expect("sliced");
    assert_eq!((report.from, report.to), (position, end));
}
