//! What is visible at which LSN, on layers written by hand.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use bytes::Bytes;
use world::*;
use zenith_ingest::model::{RelEvent, SlruSize};
use zenith_layers::{Key, Slru};
use zenith_manifest::TliSwitch;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode, page};
use zenith_reader::{BlockRange, ReadError, Relation, Snapshot, Timeline};
use zenith_redo::native::{ALL_VISIBLE, Edit};

async fn mark_at(timeline: &Timeline, lsn: u64, block: u32) -> Result<u8, ReadError> {
    let snapshot = timeline.snapshot(Lsn(lsn)).await?;
    let page = snapshot.page(NODE, Fork::Main, block).await?;
    let again = snapshot.pages(NODE, Fork::Main, block, 1).await?;
    assert_eq!(again, std::slice::from_ref(&page), "one page and a range of one agree");
    Ok(mark_of(&page))
}

async fn blocks_at(timeline: &Timeline, lsn: u64) -> Option<u32> {
    timeline.snapshot(Lsn(lsn)).await.unwrap().rel_size(NODE, Fork::Main).await.unwrap()
}

#[tokio::test]
async fn a_page_is_as_its_newest_row_at_or_below_the_lsn_says() {
    let mut world = World::new(1).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 2, 0), page_row(NODE, 0, 100, 1)]).await;
    let rows = vec![page_row(NODE, 0, 150, 2), page_row(NODE, 0, 300, 3)];
    world.slice(400, rows, &[], &[base]).await;
    let timeline = world.open().await;
    assert_eq!(mark_at(&timeline, 200, 0).await.unwrap(), 2);
    assert_eq!(mark_at(&timeline, 299, 0).await.unwrap(), 2);
    assert_eq!(mark_at(&timeline, 300, 0).await.unwrap(), 3);
    assert_eq!(timeline.end().unwrap(), Lsn(400));
}

#[tokio::test]
async fn a_block_that_the_base_image_leaves_out_is_zeros_and_stays_all_zeros() {
    let mut world = World::new(2).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 2, 0), page_row(NODE, 0, 100, 1)]).await;
    world.slice(300, vec![], &[], &[base]).await;
    let snapshot = world.open().await.snapshot(Lsn(250)).await.unwrap();
    assert!(snapshot.data_checksums());
    let pages = snapshot.pages(NODE, Fork::Main, 0, 2).await.unwrap();
    assert_eq!(page::verify(pages[0][..].try_into().unwrap(), 0, true), Ok(()));
    assert!(pages[1].iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn a_served_page_carries_the_checksum_of_its_own_block() {
    let mut world = World::new(3).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 3, 0)]).await;
    world.slice(300, vec![page_row(NODE, 2, 250, 9)], &[], &[base]).await;
    let snapshot = world.open().await.snapshot(Lsn(300)).await.unwrap();
    let served = snapshot.page(NODE, Fork::Main, 2).await.unwrap();
    let served: &[u8; BLCKSZ] = served[..].try_into().unwrap();
    assert_eq!(page::verify(served, 2, true), Ok(()));
    assert!(page::verify(served, 1, true).is_err());
}

#[tokio::test]
async fn a_page_newer_than_the_lsn_is_not_served() {
    let mut world = World::new(4).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 1, 0)]).await;
    let mut early = page_row(NODE, 0, 900, 1);
    early.lsn = Lsn(250);
    world.slice(300, vec![early], &[], &[base]).await;
    let error = mark_at(&world.open().await, 300, 0).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("0/384") && text.contains("1663/5/16384"), "{text}");
}

#[tokio::test]
async fn a_relation_made_again_shows_nothing_of_the_earlier_one() {
    let mut world = World::new(5).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 2, 0), page_row(NODE, 0, 100, 1)]).await;
    let rows = vec![
        tombstone(Key::rel_size(NODE, Fork::Main), 250),
        size(NODE, 300, 1, 300),
        page_row(NODE, 0, 310, 2),
    ];
    world.slice(400, rows, &[], &[base]).await;
    let timeline = world.open().await;
    assert_eq!(mark_at(&timeline, 249, 0).await.unwrap(), 1);
    assert_eq!(blocks_at(&timeline, 250).await, None);
    let gone = mark_at(&timeline, 250, 0).await.unwrap_err();
    assert!(matches!(gone, ReadError::NoSuchRelation { lsn: Lsn(250), .. }), "{gone}");
    // Between its creation and its first page the new relation has no base to build on.
    let lost = mark_at(&timeline, 305, 0).await.unwrap_err().to_string();
    assert!(lost.contains("no beginning"), "{lost}");
    assert_eq!(mark_at(&timeline, 310, 0).await.unwrap(), 2);
    let past = mark_at(&timeline, 310, 1).await.unwrap_err();
    assert!(matches!(past, ReadError::NoSuchBlock { blocks: 1, .. }), "{past}");
}

#[tokio::test]
async fn after_a_truncation_regrown_blocks_are_what_growth_made_of_them() {
    let mut world = World::new(6).await;
    let pages = (0..4).map(|block| page_row(NODE, block, 100, 10 + block as u8));
    let base = world.base(100, 200, pages.chain([size(NODE, 0, 4, 0)]).collect()).await;
    let rows = vec![
        size_after(NODE, 250, 1, 0, 250),
        happened(NODE, 250, RelEvent::Truncated { to: 1 }),
        size_after(NODE, 300, 4, 0, 300),
        happened(NODE, 300, RelEvent::Gap { from: 1, to: 3 }),
        page_row(NODE, 3, 300, 20),
        page_row(NODE, 2, 350, 30),
    ];
    world.slice(400, rows, &[], &[base]).await;
    let timeline = world.open().await;
    assert_eq!(mark_at(&timeline, 249, 3).await.unwrap(), 13);
    assert_eq!(blocks_at(&timeline, 260).await, Some(1));
    assert_eq!(mark_at(&timeline, 260, 0).await.unwrap(), 10);
    let snapshot = timeline.snapshot(Lsn(300)).await.unwrap();
    let marks = snapshot.pages(NODE, Fork::Main, 0, 4).await.unwrap();
    assert_eq!(marks.iter().map(|page| mark_of(page)).collect::<Vec<_>>(), [10, 0, 0, 20]);
    assert_eq!(mark_at(&timeline, 400, 2).await.unwrap(), 30);
}

const COPY: RelNode = RelNode { spc: 1663, db: 77, rel: 16384 };

async fn with_a_copied_database() -> Timeline {
    let mut world = World::new(7).await;
    let other = RelNode { rel: 16390, ..NODE };
    let base = world
        .base(
            100,
            200,
            vec![
                database(1663, 5, 0, None),
                size(NODE, 0, 3, 0),
                page_row(NODE, 0, 100, 1),
                page_row(NODE, 1, 100, 2),
                size(other, 0, 1, 0),
                page_row(other, 0, 100, 5),
                state(Key::rel_map(1663, 5), 0, Bytes::from_static(b"map")),
            ],
        )
        .await;
    let rows = vec![
        page_row(NODE, 1, 250, 3),
        database(1663, 77, 300, Some((1663, 5, 300))),
        page_row(NODE, 0, 350, 4),
        page_row(COPY, 1, 400, 6),
        tombstone(Key::rel_size(RelNode { rel: 16390, ..COPY }, Fork::Main), 420),
        size(COPY, 450, 4, 300),
        page_row(COPY, 3, 450, 7),
        tombstone(Key::database(1663, 5), 500),
        tombstone(Key::database(1663, 77), 600),
    ];
    world.slice(700, rows, &[], &[base]).await;
    world.open().await
}

async fn marks(snapshot: &Snapshot, node: RelNode) -> Vec<u8> {
    let blocks = snapshot.rel_size(node, Fork::Main).await.unwrap().unwrap();
    let pages = snapshot.pages(node, Fork::Main, 0, blocks).await.unwrap();
    pages.iter().map(|page| mark_of(page)).collect()
}

#[tokio::test]
async fn a_database_copied_by_files_reads_on_in_its_source_as_it_was() {
    let timeline = with_a_copied_database().await;
    let at = async |lsn| timeline.snapshot(Lsn(lsn)).await.unwrap();
    assert_eq!(marks(&at(360).await, COPY).await, [1, 3, 0]);
    assert_eq!(marks(&at(360).await, NODE).await, [4, 3, 0]);
    assert_eq!(marks(&at(400).await, COPY).await, [1, 6, 0]);
    assert_eq!(marks(&at(470).await, COPY).await, [1, 6, 0, 7]);
    // The source is dropped; the copy stays.
    let later = at(550).await;
    assert_eq!(marks(&later, COPY).await, [1, 6, 0, 7]);
    assert!(matches!(later.relations(1663, 5).await, Err(ReadError::NoSuchDatabase { db: 5, .. })));
    assert_eq!(later.rel_size(NODE, Fork::Main).await.unwrap(), None);
    assert_eq!(later.rel_map(1663, 77).await.unwrap(), Some(Bytes::from_static(b"map")));
    assert_eq!(at(650).await.rel_size(COPY, Fork::Main).await.unwrap(), None);
}

#[tokio::test]
async fn listings_follow_copies_and_tombstones_hide() {
    let timeline = with_a_copied_database().await;
    let list = async |lsn, db| {
        let snapshot = timeline.snapshot(Lsn(lsn)).await.unwrap();
        let relations = snapshot.relations(1663, db).await.unwrap();
        relations.into_iter().map(|Relation { node, blocks, .. }| (node.rel, blocks)).collect::<Vec<_>>()
    };
    assert_eq!(list(299, 5).await, [(16384, 3), (16390, 1)]);
    assert_eq!(list(310, 77).await, [(16384, 3), (16390, 1)]);
    assert_eq!(list(430, 77).await, [(16384, 3)]);
    assert_eq!(list(550, 77).await, [(16384, 4)]);
    let databases = async |lsn| {
        let snapshot = timeline.snapshot(Lsn(lsn)).await.unwrap();
        snapshot.databases().into_iter().map(|entry| entry.db).collect::<Vec<_>>()
    };
    assert_eq!(databases(299).await, [5]);
    assert_eq!(databases(310).await, [5, 77]);
    assert_eq!(databases(550).await, [77]);
    assert_eq!(databases(650).await, Vec::<u32>::new());
}

#[tokio::test]
async fn a_batch_of_small_relations_gives_each_its_own_pages() {
    let timeline = with_a_copied_database().await;
    let snapshot = timeline.snapshot(Lsn(470)).await.unwrap();
    let other = RelNode { rel: 16390, ..NODE };
    let range = |node, from, count| BlockRange { node, fork: Fork::Main, from, count };
    let ranges = [range(COPY, 2, 2), range(other, 0, 1), range(NODE, 5, 0), range(NODE, 0, 2)];
    let pages = snapshot.page_ranges(&ranges).await.unwrap();
    assert_eq!(pages.iter().map(|page| mark_of(page)).collect::<Vec<_>>(), [0, 7, 5, 4, 3]);
    let wide = [range(COPY, 0, 1000), range(COPY, 0, 25)];
    assert!(matches!(snapshot.page_ranges(&wide).await, Err(ReadError::TooMany { asked: 1025, .. })));
}

#[tokio::test]
async fn lsns_that_cannot_be_read_are_refused_by_what_can_be() {
    let mut world = World::new(8).await;
    let empty = world.open().await;
    assert!(matches!(empty.snapshot(Lsn(5)).await, Err(ReadError::NoBase { .. })));
    let first = world.base(100, 200, vec![]).await;
    world.slice(190, vec![], &[], &[]).await;
    let timeline = world.open().await;
    assert!(matches!(
        timeline.snapshot(Lsn(150)).await,
        Err(ReadError::BelowBase { earliest: Lsn(200), .. })
    ));
    assert!(matches!(timeline.snapshot(Lsn(250)).await, Err(ReadError::Unconfirmed { end: Lsn(200), .. })));
    assert!(timeline.end().is_err());
    world.slice(300, vec![], &[], &[first]).await;
    let second = world.base(500, 600, vec![]).await;
    world.gap(second, 500).await;
    world.slice(700, vec![], &[], &[second]).await;
    let timeline = world.open().await;
    assert!(matches!(timeline.check(Lsn(199)), Err(ReadError::BelowBase { earliest: Lsn(200), .. })));
    assert!(timeline.check(Lsn(200)).is_ok());
    assert!(timeline.check(Lsn(300)).is_ok());
    for lsn in [301, 550, 599] {
        let refused = timeline.check(Lsn(lsn));
        assert!(
            matches!(refused, Err(ReadError::InGap { before: Lsn(300), after: Lsn(600), .. })),
            "{lsn}: {refused:?}"
        );
    }
    assert!(timeline.check(Lsn(600)).is_ok());
    assert!(matches!(timeline.check(Lsn(701)), Err(ReadError::PastEnd { end: Lsn(700), .. })));
    let ranges: Vec<_> = timeline.ranges().iter().map(|range| (range.from.0, range.to.0)).collect();
    assert_eq!(ranges, [(200, 300), (600, 700)]);
}

#[tokio::test]
async fn a_base_image_that_was_never_confirmed_serves_nothing() {
    let mut world = World::new(9).await;
    let first = world.base(100, 200, vec![size(NODE, 0, 1, 0), page_row(NODE, 0, 100, 1)]).await;
    world.slice(300, vec![], &[], &[first]).await;
    world.base(220, 260, vec![size(NODE, 0, 1, 0), page_row(NODE, 0, 220, 2)]).await;
    assert_eq!(mark_at(&world.open().await, 300, 0).await.unwrap(), 1);
}

#[tokio::test]
async fn a_child_is_its_parent_up_to_the_branch_point_and_itself_after() {
    let mut world = World::new(10).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 1, 0), page_row(NODE, 0, 100, 1)]).await;
    let rows = vec![page_row(NODE, 0, 300, 2), page_row(NODE, 0, 350, 3)];
    world.slice(400, rows, &[], &[base]).await;
    let mut child = world.branch("copy", 320).await;
    let born = child.open().await;
    assert_eq!(born.end().unwrap(), Lsn(320));
    assert_eq!(mark_at(&born, 320, 0).await.unwrap(), 2);
    child.slice(500, vec![page_row(NODE, 0, 360, 9)], &[], &[]).await;
    let timeline = child.open().await;
    assert_eq!(mark_at(&timeline, 250, 0).await.unwrap(), 1);
    assert_eq!(mark_at(&timeline, 359, 0).await.unwrap(), 2);
    assert_eq!(mark_at(&timeline, 500, 0).await.unwrap(), 9);
    let snapshot = timeline.snapshot(Lsn(500)).await.unwrap();
    assert_eq!(snapshot.base().id, base);
    assert_eq!(snapshot.tli(), 2);
    assert_eq!(snapshot.history().iter().map(|switch| switch.tli).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(timeline.snapshot(Lsn(320)).await.unwrap().tli(), 1);
    let ranges: Vec<_> = timeline.ranges().iter().map(|range| (range.from.0, range.to.0)).collect();
    assert_eq!(ranges, [(200, 500)]);
    assert!(matches!(timeline.check(Lsn(150)), Err(ReadError::BelowBase { .. })));
}

#[tokio::test]
async fn a_child_whose_parent_is_not_sliced_up_to_the_branch_point_is_refused() {
    let mut world = World::new(11).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 1, 0)]).await;
    world.slice(300, vec![], &[], &[base]).await;
    let mut child = world.branch("copy", 320).await;
    child.slice(500, vec![], &[], &[]).await;
    let timeline = child.open().await;
    assert!(matches!(timeline.check(Lsn(400)), Err(ReadError::PastEnd { end: Lsn(300), .. })));
    assert_eq!(timeline.end().unwrap(), Lsn(300));
}

/// It was made of archived WAL that the parent's slicer then passed over, because another history came.
#[tokio::test]
async fn a_branch_of_a_history_that_its_parent_has_left_is_refused() {
    let mut world = World::new(13).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 1, 0), page_row(NODE, 0, 100, 1)]).await;
    world.slice(300, vec![], &[], &[base]).await;
    let mut child = world.branch("copy", 350).await;
    child.slice(500, vec![page_row(NODE, 0, 450, 9)], &[], &[]).await;
    world.switches = vec![TliSwitch { tli: 2, from: Lsn(320) }];
    world.tli = 2;
    world.slice(400, vec![page_row(NODE, 0, 330, 2)], &[], &[]).await;
    let timeline = child.open().await;
    assert_eq!(mark_at(&timeline, 310, 0).await.unwrap(), 1, "below the switch it is the same history");
    for lsn in [340, 350, 460] {
        let refused = mark_at(&timeline, lsn, 0).await.unwrap_err();
        assert!(matches!(refused, ReadError::OtherHistory { before: 1, after: 2, .. }), "{lsn}: {refused}");
    }
}

#[tokio::test]
async fn edits_of_a_map_page_apply_up_to_the_lsn() {
    let mut world = World::new(12).await;
    let map = Key::rel_block(NODE, Fork::Vm, 0);
    let vm_size = zenith_ingest::model::RelSize { blocks: 1, ..Default::default() };
    let mut bits = marked(100, 0);
    bits[24] = 0b0101_0101;
    let mut base_page = page_row(NODE, 0, 100, 0);
    base_page.key = map;
    base_page.value = zenith_layers::Value::Page(Bytes::copy_from_slice(&bits));
    let rows = vec![state(Key::rel_size(NODE, Fork::Vm), 0, vm_size.encode()), base_page];
    let base = world.base(100, 200, rows).await;
    let clear = |block| Edit::ClearVisibility { blocks: vec![(block, ALL_VISIBLE)] }.encode();
    world.slice(400, vec![edit(map, 250, clear(0)), edit(map, 300, clear(3))], &[], &[base]).await;
    let timeline = world.open().await;
    let bits_at =
        async |lsn| timeline.snapshot(Lsn(lsn)).await.unwrap().page(NODE, Fork::Vm, 0).await.unwrap()[24];
    assert_eq!(bits_at(249).await, 0b0101_0101);
    assert_eq!(bits_at(250).await, 0b0101_0100);
    assert_eq!(bits_at(300).await, 0b0001_0100);
}

#[tokio::test]
async fn a_free_space_map_page_is_its_newest_image_whatever_came_after_it_and_zeros_without_one() {
    let mut world = World::new(16).await;
    let map = |block| Key::rel_block(NODE, Fork::Fsm, block);
    let size = zenith_ingest::model::RelSize { blocks: 2, ..Default::default() };
    let image = |lsn, mark| zenith_layers::Row { key: map(0), ..page_row(NODE, 0, lsn, mark) };
    let rows = vec![state(Key::rel_size(NODE, Fork::Fsm), 0, size.encode()), image(100, 1)];
    let base = world.base(100, 200, rows).await;
    let lost = edit(map(1), 320, Bytes::from_static(b"nobody looks into it"));
    let after = edit(map(0), 310, Bytes::from_static(b"nobody looks into it"));
    world.slice(400, vec![image(300, 2), after, lost], &[], &[base]).await;
    let timeline = world.open().await;
    for (lsn, marks) in [(250, [1, 0]), (305, [2, 0]), (400, [2, 0])] {
        let pages = timeline.snapshot(Lsn(lsn)).await.unwrap().pages(NODE, Fork::Fsm, 0, 2).await.unwrap();
        assert_eq!(pages.iter().map(|page| mark_of(page)).collect::<Vec<_>>(), marks, "{lsn}");
    }
}

#[tokio::test]
async fn slru_pages_are_images_and_edits_and_a_removed_segment_leaves_nothing() {
    let mut world = World::new(13).await;
    let size = |lsn, pages| state(Key::slru_size(Slru::Xact, 0), lsn, SlruSize { pages }.encode());
    let page = |number| Key::slru_page(Slru::Xact, 0, number);
    let mut image = page_row(NODE, 0, 100, 7);
    image.key = page(1);
    let base = world.base(100, 200, vec![size(0, 2), image]).await;
    let commit =
        Edit::XactStatus { status: zenith_redo::native::XactStatus::Committed, slots: vec![0, 5] }.encode();
    let rows = vec![edit(page(0), 250, commit), tombstone(Key::slru_size(Slru::Xact, 0), 300), size(350, 2)];
    world.slice(400, rows, &[], &[base]).await;
    let timeline = world.open().await;
    let at = async |lsn| timeline.snapshot(Lsn(lsn)).await.unwrap();
    let segment = at(260).await.slru_segment(Slru::Xact, 0).await.unwrap();
    assert_eq!(segment.len(), 2 * BLCKSZ);
    assert_eq!((segment[0], segment[1]), (0b01, 0b0100));
    assert_eq!(mark_of(&segment[BLCKSZ..]), 7);
    assert_eq!(at(260).await.slru_segments(Slru::Xact).await.unwrap(), [(0, 2)]);
    assert_eq!(at(310).await.slru_segments(Slru::Xact).await.unwrap(), []);
    assert!(at(310).await.slru_page(Slru::Xact, 0, 0).await.is_err());
    assert!(at(360).await.slru_segment(Slru::Xact, 0).await.unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn an_explanation_names_rows_layers_and_requests() {
    let mut world = World::new(14).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 2, 0), page_row(NODE, 0, 100, 1)]).await;
    world.slice(400, vec![page_row(NODE, 0, 300, 3)], &[], &[base]).await;
    let timeline = world.open().await;
    let explain = async |lsn, block| {
        let snapshot = timeline.snapshot(Lsn(lsn)).await.unwrap();
        snapshot.explain(NODE, Fork::Main, block).await.unwrap()
    };
    let newest = explain(350, 0).await;
    assert_eq!(newest.rows.iter().map(|row| (row.lsn.0, row.kind)).collect::<Vec<_>>(), [(300, "page")]);
    assert_eq!(newest.layers.len(), 1);
    assert!(newest.requests > 0);
    assert_eq!(mark_of(&newest.page), 3);
    let older = explain(250, 0).await;
    assert_eq!(older.rows.len(), 1);
    assert!(older.layers.iter().any(|layer| layer.lsn_to == Lsn(100)));
    let hole = explain(250, 1).await;
    assert_eq!(hole.start, zenith_reader::PageStart::Zeros);
    assert!(hole.rows.is_empty());
    let json = serde_json::to_value(&newest).unwrap();
    assert_eq!(json["rows"][0]["lsn"], "0/12C");
}

#[tokio::test]
async fn a_page_is_built_once_for_all_who_ask() {
    let mut world = World::new(15).await;
    let base = world.base(100, 200, vec![size(NODE, 0, 1, 0), page_row(NODE, 0, 100, 1)]).await;
    world.slice(300, vec![], &[], &[base]).await;
    let timeline = world.open().await;
    let snapshot = timeline.snapshot(Lsn(300)).await.unwrap();
    let first = snapshot.page(NODE, Fork::Main, 0).await.unwrap();
    let before = timeline.counts().snapshot();
    let again = timeline.snapshot(Lsn(300)).await.unwrap().page(NODE, Fork::Main, 0).await.unwrap();
    assert_eq!(first.as_ptr(), again.as_ptr());
    assert_eq!(timeline.counts().snapshot().since(&before).requests(), 0);
}
