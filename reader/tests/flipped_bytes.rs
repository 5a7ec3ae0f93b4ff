//! Every byte of every object of a small store flipped, one at a time: whatever is read then is what it was, or an error.

#![allow(clippy::unwrap_used)] // a helper of tests fails as a test does

mod world;

use bytes::Bytes;
use futures::TryStreamExt;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::fmt::Debug;
use std::sync::Arc;
use world::*;
use zenith_ingest::model::{RelEvent, SlruSize};
use zenith_layers::{Event, EventKind, Key, Slru, Value};
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::wal::encode::{Placed, WalWriter, WriterStart};
use zenith_pgformat::wal_name::WalSegSize;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RelNode};
use zenith_reader::{BlockRange, Snapshot, Target, Timeline, TimelineRef};
use zenith_redo::native::{ALL_VISIBLE, Edit, XactStatus};

const SEGMENT: u64 = 1 << 20;
/// `XLOG_NOOP`, catalog/pg_control.h.
const NOOP: u8 = 0x20;
const OTHER: RelNode = RelNode { rel: 16390, ..NODE };

/// Every page and state at some LSNs, what every kind of target means, the archive and the listing of objects.
type Seen = Vec<(String, Vec<Bytes>)>;

/// A base image, two slices with every kind of row that needs no redo, events, and a segment of WAL.
async fn small_store() -> World {
    let mut wal = WalWriter::new(WriterStart {
        lsn: Lsn(SEGMENT),
        prev: Lsn(SEGMENT - 64),
        tli: 1,
        seg_size: WalSegSize::new(SEGMENT).unwrap(),
        system_identifier: SYSTEM,
    })
    .unwrap();
    let mut record = || wal.append(RmgrId::XLOG, NOOP, 0, &[1; 40]);
    let placed: Vec<Placed> = (0..12).map(|_| record()).collect();
    let at = |number: usize| placed[number].end.0;
    let event = |number: usize, kind, name: &str| Event {
        start: placed[number].lsn,
        lsn: placed[number].end,
        kind,
        xid: 700 + number as u32,
        time: 1_000_000 * number as i64,
        name: name.to_owned(),
        subxacts: 0,
    };

    let mut world = World::new(1).await;
    world.archive(Lsn(SEGMENT), &wal.finish()).await;
    let rows = vec![
        database(1663, 5, 0, None),
        size(NODE, 0, 3, 0),
        page_row(NODE, 0, 100, 1),
        page_row(NODE, 2, 100, 2),
        state(Key::rel_map(1663, 5), 0, Bytes::from_static(b"a relation map")),
        state(Key::slru_size(Slru::Xact, 0), 0, SlruSize { pages: 1 }.encode()),
    ];
    let base = world.base(placed[1].lsn.0, at(2), rows).await;
    let map = Edit::ClearVisibility { blocks: vec![(3, ALL_VISIBLE)] };
    let mut visible = page_row(NODE, 0, at(3), 0xFF);
    visible.key = Key::rel_block(NODE, Fork::Vm, 0);
    visible.value = Value::Page(Bytes::copy_from_slice(&marked(at(3), 0xFF)));
    let mut map_size = size(NODE, at(3), 1, 0);
    map_size.key = Key::rel_size(NODE, Fork::Vm);
    let committed = Edit::XactStatus { status: XactStatus::Committed, slots: vec![3, 4, 5] };
    let first = vec![
        page_row(NODE, 0, at(3), 3),
        map_size,
        visible,
        edit(Key::rel_block(NODE, Fork::Vm, 0), at(4), map.encode()),
        edit(Key::slru_page(Slru::Xact, 0, 0), at(4), committed.encode()),
        size(OTHER, at(4), 1, at(4)),
        page_row(OTHER, 0, at(4), 4),
    ];
    let events = [event(3, EventKind::Commit, ""), event(4, EventKind::RestorePoint, "half")];
    world.slice(at(5), first, &events, &[base]).await;
    let second = vec![
        tombstone(Key::rel_size(OTHER, Fork::Main), at(6)),
        size_after(NODE, at(7), 1, 0, at(7)),
        happened(NODE, at(7), RelEvent::Truncated { to: 1 }),
        page_row(NODE, 0, at(8), 8),
        state(Key::two_phase(701), at(8), Bytes::from_static(b"prepared")),
    ];
    let events = [event(7, EventKind::Commit, ""), event(8, EventKind::Abort, "")];
    world.slice(at(10), second, &events, &[]).await;
    world
}

/// Everything that the objects say.
async fn everything(world: &World) -> Result<Seen, Box<dyn std::error::Error>> {
    let name = TimelineRef::Name("main".to_owned());
    let timeline = Timeline::open(&world.store, "main", &name, world.options()).await?;
    let mut seen = Seen::new();
    let mut say = |what: &dyn Debug| seen.push((format!("{what:?}"), Vec::new()));
    say(&(timeline.identity(), timeline.root(), timeline.entries(), timeline.ranges(), timeline.end()?));
    let mut targets = vec![Target::Latest, Target::Name("half".to_owned())];
    targets.extend([Target::Time(5_000_000), Target::Xid(703), Target::Xid(708)]);
    let mut lsns = Vec::new();
    for target in targets {
        let resolved = timeline.resolve(&target).await?;
        lsns.push(resolved.lsn);
        say(&resolved);
    }
    say(&timeline.restore_points(10).await?);
    let raw = timeline.raw_wal(1, 1).await?;
    seen.push(("WAL".to_owned(), raw.into_iter().collect()));
    lsns.sort();
    lsns.dedup();
    for lsn in lsns {
        snapshot(&timeline.snapshot(lsn).await?, &mut seen).await?;
    }
    Ok(seen)
}

async fn snapshot(at: &Snapshot, seen: &mut Seen) -> Result<(), Box<dyn std::error::Error>> {
    let states = (at.databases(), at.checkpoint().await?, at.parameters().await?, at.tli(), at.base().id);
    seen.push((format!("{} {states:?}", at.lsn()), vec![]));
    seen.push(("map".to_owned(), at.rel_map(1663, 5).await?.into_iter().collect()));
    for (xid, bytes) in at.two_phase().await? {
        seen.push((format!("prepared {xid}"), vec![bytes]));
    }
    let relations = at.relations(1663, 5).await?;
    let range = |relation: &zenith_reader::Relation| {
        let (node, fork, count) = (relation.node, relation.fork, relation.blocks);
        BlockRange { node, fork, from: 0, count }
    };
    let ranges: Vec<BlockRange> = relations.iter().map(range).collect();
    seen.push((format!("{relations:?}"), at.page_ranges(&ranges).await?));
    for (segment, pages) in at.slru_segments(Slru::Xact).await? {
        seen.push((format!("pg_xact {segment} {pages}"), vec![at.slru_segment(Slru::Xact, segment).await?]));
    }
    Ok(())
}

/// Flips a bit of every byte whose number is `part` modulo `parts`; how many, and how many were noticed.
async fn flip(part: usize, parts: usize) -> (usize, usize) {
    let world = small_store().await;
    let objects: Arc<dyn ObjectStore> = Arc::clone(&world.store.objects);
    let whole = everything(&world).await.unwrap();
    let pages: usize = whole.iter().flat_map(|(_, bytes)| bytes).filter(|page| page.len() == BLCKSZ).count();
    assert!(pages > 10, "{pages}");
    let paths: Vec<Path> = objects.list(None).map_ok(|object| object.location).try_collect().await.unwrap();
    assert!(paths.len() >= 8, "{paths:?}");
    let (mut flips, mut noticed) = (0, 0);
    for path in paths {
        let bytes = objects.get(&path).await.unwrap().bytes().await.unwrap();
        for at in (0..bytes.len()).filter(|at| at % parts == part) {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1 << ((at * 7 + at / 8) % 8);
            objects.put(&path, flipped.into()).await.unwrap();
            flips += 1;
            match everything(&world).await {
                Ok(seen) => assert!(seen == whole, "byte {at} of {path}"),
                Err(_) => noticed += 1,
            }
        }
        objects.put(&path, bytes.into()).await.unwrap();
    }
    assert!(everything(&world).await.unwrap() == whole);
    println!("{flips} flips, {noticed} noticed");
    (flips, noticed)
}

#[tokio::test]
async fn every_even_byte_flipped_is_harmless_or_noticed() {
    let (flips, noticed) = flip(0, 2).await;
    assert!(noticed > flips / 2, "{noticed} of {flips}");
}

#[tokio::test]
async fn every_odd_byte_flipped_is_harmless_or_noticed() {
    let (flips, noticed) = flip(1, 2).await;
    assert!(noticed > flips / 2, "{noticed} of {flips}");
}
