//! Pages and small files of a snapshot beside those of a stopped server.

use super::{control, files};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use zenith_layers::Slru;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, Fork, Lsn, RELSEG_SIZE, RelNode, page};
use zenith_reader::{Relation, Snapshot, Timeline};
use zenith_testkit::mask::first_difference;

/// `FirstNormalObjectId`, access/transam.h.
const FIRST_USER_DATABASE: u32 = 16384;
/// What a stopped server left: its forks, free-space maps and what is not permanent aside.
pub(crate) fn forks(data: &Path) -> BTreeMap<(RelNode, Fork), Vec<u8>> {
    let found: Vec<(RelFile, PathBuf)> =
        files(data).into_iter().filter_map(|(path, file)| Some((RelFile::parse(&path)?, file))).collect();
    let unlogged: BTreeSet<RelNode> =
        found.iter().filter(|(file, _)| file.fork == Fork::Init).map(|(file, _)| file.node).collect();
    let mut forks: BTreeMap<(RelNode, Fork), Vec<u8>> = BTreeMap::new();
    for (file, path) in found {
        let permanent = file.fork == Fork::Init || !unlogged.contains(&file.node);
        if permanent && file.fork != Fork::Fsm {
            assert!(file.segment == 0 || file.segment < RELSEG_SIZE);
            forks.entry((file.node, file.fork)).or_default().extend(std::fs::read(path).unwrap());
        }
    }
    forks
}

pub(crate) fn is_zero(page: &[u8]) -> bool {
    page.iter().all(|byte| *byte == 0)
}

/// A sequence's page (`SEQ_MAGIC` in its special space): WAL tells its values up to 32 ahead.
pub(crate) fn is_sequence(page: &[u8]) -> bool {
    page[BLCKSZ - 8..] == [0x17, 0x17, 0, 0, 0, 0, 0, 0]
}

/// All zeros, or a heap page without anything on it: what extending a relation leaves behind and WAL does not tell.
pub(crate) fn is_empty(page: &[u8]) -> bool {
    is_zero(page) || (page[12..14] == [24, 0] && page[14..18] == [0, 32, 0, 32] && is_zero(&page[24..]))
}

#[derive(Default, Debug)]
pub(crate) struct Found {
    pub(crate) pages: usize,
    /// Pages whose LSN is the server's too.
    same_lsn: usize,
    pub(crate) differences: Vec<String>,
}

/// Compares every page, in the batches that a restore reads.
pub(crate) async fn compare(
    snapshot: &Snapshot,
    server: &BTreeMap<(RelNode, Fork), Vec<u8>>,
    checksums: bool,
) -> Found {
    let mut found = Found::default();
    for ((node, fork), theirs) in server {
        let theirs_blocks = (theirs.len() / BLCKSZ) as u32;
        let blocks = snapshot.rel_size(*node, *fork).await.unwrap().unwrap_or(0);
        if blocks > theirs_blocks {
            found
                .differences
                .push(format!("{node} {fork:?}: {blocks} blocks, the server has {theirs_blocks}"));
            continue;
        }
        let mut ours: Vec<Bytes> = Vec::new();
        while (ours.len() as u32) < blocks {
            let from = ours.len() as u32;
            match snapshot.pages(*node, *fork, from, (blocks - from).min(256)).await {
                Ok(mut pages) => ours.append(&mut pages),
                Err(error) => {
                    found.differences.push(format!("{node} {fork:?} from {from}: {error}"));
                    break;
                }
            }
        }
        for (block, theirs) in theirs.chunks_exact(BLCKSZ).enumerate() {
            match ours.get(block) {
                Some(ours) => compare_page(&mut found, *node, *fork, block as u32, ours, theirs, checksums),
                None if block < blocks as usize || is_empty(theirs) => {}
                None => found.differences.push(format!("{node} {fork:?} block {block} is missing")),
            }
        }
    }
    found
}

pub(crate) fn compare_page(
    found: &mut Found,
    node: RelNode,
    fork: Fork,
    block: u32,
    ours: &[u8],
    theirs: &[u8],
    checksums: bool,
) {
    found.pages += 1;
    let lsn = |page: &[u8]| page::lsn(page.try_into().unwrap());
    if lsn(ours) == lsn(theirs) {
        found.same_lsn += 1;
    } else if !is_sequence(theirs) && !is_zero(ours) && fork != Fork::Init {
        // A B-tree's init fork is written before it is logged (`btbuildempty`), so its file knows no LSN.
        let (ours, theirs) = (lsn(ours), lsn(theirs));
        found.differences.push(format!("{node} {fork:?} block {block}: LSNs {ours} and {theirs}"));
    }
    if let Err(error) = page::verify(ours.try_into().unwrap(), block, checksums) {
        found.differences.push(format!("{node} {fork:?}: {error}"));
    }
    // The mask takes a map page's bits for a hole.
    let differs = match fork {
        // CREATE DATABASE ... WAL_LOG logs map pages as if they had a hole, so that redo loses their bits
        // (`RelationCopyStorageUsingBuffer`, bufmgr.c). A bit less is always safe.
        Fork::Vm if node.db >= FIRST_USER_DATABASE => (24..BLCKSZ).find(|at| ours[*at] & !theirs[*at] != 0),
        Fork::Vm => (24..BLCKSZ).find(|at| ours[*at] != theirs[*at]),
        _ => first_difference(ours, theirs, block),
    };
    if let Some(at) = differs
        && !is_sequence(theirs)
        && !(is_zero(ours) && is_empty(theirs))
    {
        let (ours_lsn, theirs_lsn) = (lsn(ours), lsn(theirs));
        let (end, special) = ((at + 8).min(BLCKSZ), u16::from_le_bytes([ours[16], ours[17]]));
        found.differences.push(format!(
            "{node} {fork:?} block {block}: byte {at} differs, {:02x?} and {:02x?}; special {special}; LSNs {ours_lsn} and \
             {theirs_lsn}",
            &ours[at..end],
            &theirs[at..end],
        ));
    }
}

/// Relations that the snapshot lists and the server has not.
///
/// `orphans` are files that no catalog row names and no record drops: they may be listed, empty.
pub(crate) async fn invented(
    snapshot: &Snapshot,
    server: &BTreeMap<(RelNode, Fork), Vec<u8>>,
    orphans: &BTreeSet<RelNode>,
) -> Vec<String> {
    let nodes: BTreeSet<(u32, u32)> = server.keys().map(|(node, _)| (node.spc, node.db)).collect();
    let mut places: BTreeSet<(u32, u32)> =
        snapshot.databases().into_iter().map(|entry| (entry.spc, entry.db)).collect();
    let unlisted: Vec<_> = nodes.iter().filter(|place| place.1 != 0 && !places.contains(place)).collect();
    assert!(unlisted.is_empty(), "databases that are not listed: {unlisted:?}");
    places.insert((1664, 0));
    let mut invented = Vec::new();
    for (spc, db) in places {
        let relations = snapshot.relations(spc, db).await.unwrap();
        let inits: BTreeSet<RelNode> =
            relations.iter().filter(|r| r.fork == Fork::Init).map(|r| r.node).collect();
        for relation in relations {
            let compared = relation.fork != Fork::Fsm
                && (relation.fork == Fork::Init || !inits.contains(&relation.node));
            let orphan = relation.blocks == 0 && orphans.contains(&relation.node);
            if compared && !orphan && !server.contains_key(&(relation.node, relation.fork)) {
                invented.push(format!("{relation:?}"));
            }
            if relation.fork == Fork::Fsm {
                readable(snapshot, relation).await;
            }
            let listed = snapshot.rel_size(relation.node, relation.fork).await.unwrap();
            assert_eq!(listed, Some(relation.blocks), "{relation:?}");
        }
    }
    invented
}

/// A hint is never compared, and still a page that PostgreSQL takes.
pub(crate) async fn readable(snapshot: &Snapshot, map: Relation) {
    for block in 0..map.blocks {
        let page = snapshot.page(map.node, map.fork, block).await.unwrap();
        page::verify(page[..].try_into().unwrap(), block, snapshot.data_checksums()).unwrap();
    }
}

/// SLRUs, relation maps, prepared transactions and counters, byte by byte.
pub(crate) async fn compare_small(snapshot: &Snapshot, data: &Path) {
    for slru in Slru::ALL {
        for (segment, pages) in snapshot.slru_segments(slru).await.unwrap() {
            let path = data.join(slru.directory()).join(format!("{segment:04X}"));
            let mut theirs = std::fs::read(&path).unwrap();
            let ours = snapshot.slru_segment(slru, segment).await.unwrap();
            assert_eq!(ours.len(), pages as usize * BLCKSZ);
            theirs.resize(theirs.len().max(ours.len()), 0);
            let differs = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            assert_eq!(differs, None, "{}", path.display());
            assert!(theirs[ours.len()..].iter().all(|byte| *byte == 0), "{}", path.display());
        }
    }
    let mut maps = 0;
    for (path, file) in files(data).into_iter().filter(|(path, _)| path.ends_with("pg_filenode.map")) {
        let parts: Vec<&str> = path.split('/').collect();
        let place = match parts.as_slice() {
            ["global", _] => (1664, 0),
            ["base", db, _] => (1663, db.parse().unwrap()),
            ["pg_tblspc", spc, _, db, _] => (spc.parse().unwrap(), db.parse().unwrap()),
            _ => panic!("{path}"),
        };
        let ours = snapshot.rel_map(place.0, place.1).await.unwrap();
        assert_eq!(ours.as_deref(), Some(std::fs::read(file).unwrap().as_slice()), "{path}");
        maps += 1;
    }
    assert!(maps >= 4, "{maps}");
    let prepared = snapshot.two_phase().await.unwrap();
    let theirs = std::fs::read_dir(data.join("pg_twophase")).unwrap().count();
    assert_eq!(prepared.len(), theirs);
    for (xid, ours) in prepared {
        let theirs = std::fs::read(data.join(format!("pg_twophase/{xid:08X}"))).unwrap();
        assert_eq!(ours, theirs, "{xid}");
    }
    let control = control(data);
    let (ours, theirs) = (snapshot.checkpoint().await.unwrap(), control.checkpoint_copy);
    assert_eq!(snapshot.next_xid().await.unwrap().0, theirs.next_xid);
    assert_eq!(
        (ours.next_oid, ours.next_multi, ours.next_multi_offset, ours.oldest_xid, ours.oldest_multi),
        (
            theirs.next_oid,
            theirs.next_multi,
            theirs.next_multi_offset,
            theirs.oldest_xid,
            theirs.oldest_multi
        )
    );
    let parameters = snapshot.parameters().await.unwrap();
    assert_eq!(parameters.wal_log_hints, control.wal_log_hints);
}
pub(crate) async fn agree(
    timeline: &Timeline,
    lsn: Lsn,
    data: &Path,
    checksums: bool,
    orphans: &BTreeSet<RelNode>,
) {
    let snapshot = timeline.snapshot(lsn).await.unwrap();
    let server = forks(data);
    let found = compare(&snapshot, &server, checksums).await;
    let mut differences = found.differences;
    differences.extend(invented(&snapshot, &server, orphans).await);
    println!("{lsn}: {} pages, {} with the server's LSN", found.pages, found.same_lsn);
    assert!(
        differences.is_empty(),
        "{} at {lsn}:\n{}",
        differences.len(),
        differences[..differences.len().min(40)].join("\n")
    );
    assert!(found.pages > 2500, "{}", found.pages);
    compare_small(&snapshot, data).await;
}
/// I8: a local tail and committed layers give the same bytes.
pub(crate) async fn same_bytes(one: &Snapshot, other: &Snapshot) {
    for entry in one.databases() {
        for relation in one.relations(entry.spc, entry.db).await.unwrap() {
            let count = relation.blocks.min(64);
            let ours = one.pages(relation.node, relation.fork, 0, count).await.unwrap();
            let theirs = other.pages(relation.node, relation.fork, 0, count).await.unwrap();
            assert!(ours == theirs, "{relation:?}");
        }
    }
}
