//! Reading takes the memory that it says, however long histories are: the test counts every byte that is allocated.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};
use world::*;
use zenith_ingest::model::{RelSize, SlruSize};
use zenith_layers::{CacheOptions, Key, Row, Slru};
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};
use zenith_reader::{BlockRange, RowLimit, Snapshot, Timeline};
use zenith_redo::native::{ALL_FROZEN, ALL_VISIBLE, Edit, XactStatus};

/// Counts what is allocated at the moment, and the most that ever was since it was asked.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator as it came; what is counted does not change what is returned.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        MOST.fetch_max(now, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The result, and how many bytes more than at the beginning were allocated at once meanwhile.
async fn measured<T>(work: impl Future<Output = T>) -> (T, usize) {
    let before = NOW.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    let result = work.await;
    (result, MOST.load(Ordering::Relaxed).saturating_sub(before))
}

const MB: usize = 1 << 20;
/// What a [`Snapshot`] says that a call takes at most, with what the test itself needs meanwhile.
const BOUND: usize = 16 * MB;
/// Blocks of the visibility map, and edits of each: together 60 MB of payload.
const PAGES: u32 = 16;
const EDITS: u32 = 4_000;

/// An edit that clears two bits of heap block `number`, and as many bytes of edits that change nothing as make it long.
fn long_edit(number: u32) -> bytes::Bytes {
    let mut blocks = vec![(0, 0); 300];
    blocks.push(((number % 2000) as u16, ALL_VISIBLE | ALL_FROZEN));
    Edit::ClearVisibility { blocks }.encode()
}

/// A visibility map whose pages have long histories, in four layers, and a commit log.
async fn long_histories() -> World {
    let mut world = World::new(1).await;
    let size = RelSize { blocks: PAGES, ..RelSize::default() };
    let full = |block| {
        let mut row = page_row(NODE, block, 100, 0xFF);
        let mut page = marked(100, 0xFF);
        page[24..].fill(0xFF);
        row.key = Key::rel_block(NODE, Fork::Vm, block);
        row.value = zenith_layers::Value::Page(bytes::Bytes::copy_from_slice(&page));
        row
    };
    let mut rows: Vec<Row> = (0..PAGES).map(full).collect();
    rows.push(state(Key::rel_size(NODE, Fork::Vm), 0, size.encode()));
    rows.push(state(Key::slru_size(Slru::Xact, 0), 0, SlruSize { pages: 1 }.encode()));
    let base = world.base(100, 200, rows).await;
    for quarter in 0..4 {
        let numbers = quarter * EDITS / 4..(quarter + 1) * EDITS / 4;
        let mut rows = Vec::new();
        for number in numbers.clone() {
            for block in 0..PAGES {
                let lsn = 1000 + u64::from(number) * 8;
                rows.push(edit(Key::rel_block(NODE, Fork::Vm, block), lsn, long_edit(number)));
            }
            let commit = Edit::XactStatus { status: XactStatus::Committed, slots: vec![number as u16; 400] };
            rows.push(edit(Key::slru_page(Slru::Xact, 0, 0), 1000 + u64::from(number) * 8, commit.encode()));
        }
        let confirmed = if quarter == 0 { vec![base] } else { vec![] };
        world.slice(1000 + u64::from(numbers.end - 1) * 8, rows, &[], &confirmed).await;
    }
    world.caches =
        CacheOptions { index_bytes: 4 << 20, block_bytes: 0, whole_bytes: 0, requests: 4, ahead_bytes: 0 };
    world
}

async fn last(timeline: &Timeline) -> Snapshot {
    timeline.snapshot(timeline.end().unwrap()).await.unwrap()
}

fn map(node: RelNode, from: u32, count: u32) -> BlockRange {
    BlockRange { node, fork: Fork::Vm, from, count }
}

/// One test: what others allocate at the same time would be counted too.
#[tokio::test]
async fn pages_with_long_histories_take_the_memory_of_a_part_of_them() {
    let mut world = long_histories().await;
    let timeline = world.open().await;
    let snapshot = last(&timeline).await;
    // All heap blocks whose number is below 2000 are cleared: two bits each.
    let check = |page: &[u8]| {
        assert!(
            page[24..24 + 500].iter().all(|byte| *byte == 0)
                && page[24 + 500..].iter().all(|byte| *byte == 0xFF)
        );
    };

    let (one, took) = measured(snapshot.page(NODE, Fork::Vm, 3)).await;
    check(&one.unwrap());
    println!("one page: {} MB", took / MB);
    assert!(took < BOUND, "one page took {took} bytes");

    let (all, together) = measured(snapshot.page_ranges(&[map(NODE, 0, PAGES)])).await;
    all.unwrap().iter().for_each(|page| check(page));
    println!("{PAGES} pages: {} MB", together / MB);
    assert!(together < BOUND, "{PAGES} pages together took {together} bytes");

    let split: Vec<BlockRange> = (0..PAGES).map(|block| map(NODE, block, 1)).collect();
    let (all, split) = measured(snapshot.page_ranges(&split)).await;
    all.unwrap().iter().for_each(|page| check(page));
    assert!(split < BOUND, "{PAGES} ranges took {split} bytes");

    let (segment, took) = measured(snapshot.slru_segment(Slru::Xact, 0)).await;
    let segment = segment.unwrap();
    assert_eq!(segment.len(), BLCKSZ);
    assert!(segment[..EDITS as usize / 4].iter().all(|byte| *byte == 0b0101_0101));
    assert!(took < BOUND, "a commit log page took {took} bytes");

    let (explained, took) = measured(snapshot.explain(NODE, Fork::Vm, 5)).await;
    assert_eq!(explained.unwrap().rows.len(), EDITS as usize + 1);
    assert!(took < BOUND, "an explanation took {took} bytes");

    // As much as it is allowed, and the same page.
    world.rows = RowLimit { rows: 100_000, bytes: 64 * MB };
    let (page, took) = measured(async {
        last(&world.open().await).await.page_ranges(&[map(NODE, 0, PAGES)]).await.unwrap()
    })
    .await;
    page.iter().for_each(|page| check(page));
    assert!(took > 48 * MB, "only {took} bytes: the test measures nothing");
    world.rows = RowLimit { rows: 1, bytes: 0 };
    let early = Lsn(1000 + 50 * 8);
    let tiny = world.open().await.snapshot(early).await.unwrap().page(NODE, Fork::Vm, 0).await.unwrap();
    assert_eq!(tiny, timeline.snapshot(early).await.unwrap().page(NODE, Fork::Vm, 0).await.unwrap());
}
