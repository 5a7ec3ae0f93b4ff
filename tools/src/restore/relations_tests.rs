use super::*;
use zenith_pgformat::rel::DEFAULT_TABLESPACE;

fn node(rel: u32) -> RelNode {
    RelNode { spc: DEFAULT_TABLESPACE, db: 5, rel }
}

fn fork(rel: u32, fork: Fork, blocks: u32) -> ForkSize {
    ForkSize { node: node(rel), fork, blocks }
}

const RULES: PageRules = PageRules { lsn: Lsn(0x100), checksums: true };

/// A page with a header that PostgreSQL accepts.
fn good_page(block: u32, lsn: u64) -> Page {
    let mut bytes = [0; BLCKSZ];
    bytes[12..14].copy_from_slice(&24u16.to_le_bytes());
    bytes[14..16].copy_from_slice(&8192u16.to_le_bytes());
    bytes[16..18].copy_from_slice(&8192u16.to_le_bytes());
    page::set_lsn(&mut bytes, Lsn(lsn));
    page::set_checksum(&mut bytes, block);
    bytes
}

fn range(rel: u32, first: u32, count: u32) -> PageRange {
    PageRange { node: node(rel), fork: Fork::Main, first, count }
}

#[test]
fn free_space_maps_and_data_of_unlogged_relations_are_not_read() {
    let plan = Plan::new([
        fork(1, Fork::Main, 3),
        fork(1, Fork::Fsm, 3),
        fork(1, Fork::Vm, 1),
        fork(2, Fork::Main, 9),
        fork(2, Fork::Vm, 1),
        fork(2, Fork::Init, 1),
    ]);
    let read: Vec<(u32, Fork)> = plan.forks.iter().map(|fork| (fork.node.rel, fork.fork)).collect();
    assert_eq!(read, [(1, Fork::Main), (1, Fork::Vm), (2, Fork::Init)]);
    assert_eq!(plan.bytes(), 5 * BLCKSZ as u64);
}

#[test]
fn all_but_init_forks_can_be_fetched_later() {
    let mut plan = Plan::new([fork(1, Fork::Main, 3), fork(1, Fork::Vm, 1), fork(2, Fork::Init, 1)]);
    let later: Vec<(u32, Fork)> =
        plan.take_fetched_later().iter().map(|fork| (fork.node.rel, fork.fork)).collect();
    assert_eq!(later, [(1, Fork::Main), (1, Fork::Vm)]);
    assert_eq!((plan.forks(), plan.bytes()), (1, BLCKSZ as u64));
}

#[test]
fn batches_cover_every_block_once_and_stay_inside_segments() {
    let sizes = [
        fork(1, Fork::Main, 0),
        fork(2, Fork::Main, 1),
        fork(3, Fork::Main, RELSEG_SIZE + 130),
        fork(4, Fork::Vm, 7),
    ];
    let plan = Plan::new(sizes);
    let mut blocks = HashMap::new();
    for batch in plan.batches() {
        assert!(batch.iter().map(|range| range.count).sum::<u32>() <= BATCH);
        for range in batch {
            let next = blocks.entry(range.node.rel).or_insert(0);
            assert_eq!(range.first, *next, "in order, without holes");
            *next += range.count;
            let last = range.first + range.count.max(1) - 1;
            assert_eq!(range.first / RELSEG_SIZE, last / RELSEG_SIZE);
        }
    }
    for size in sizes {
        assert_eq!(blocks.get(&size.node.rel), Some(&size.blocks));
    }
}

#[test]
fn a_fork_of_exactly_one_segment_has_no_second_file() {
    let plan = Plan::new([fork(1, Fork::Main, RELSEG_SIZE)]);
    let files: BTreeSet<RelFile> = plan.batches().flatten().flat_map(|range| plan.files(&range)).collect();
    assert_eq!(files.len(), 1);
}

#[test]
fn pages_that_a_server_would_refuse_stop_the_restore() {
    let mut range = range(9, 3, 1);
    assert!(check(&good_page(3, 0x100), &range, 3, RULES).is_ok());
    assert!(check(&[0; BLCKSZ], &range, 3, RULES).is_ok());
    let wrong_block = check(&good_page(4, 0x100), &range, 3, RULES).expect_err("checksum of block 4");
    assert!(
        format!("{wrong_block:#}").contains("block 3 of relation 1663/5/9, main fork"),
        "{wrong_block:#}"
    );
    let future = check(&good_page(3, 0x101), &range, 3, RULES).expect_err("newer than the restore");
    assert!(future.to_string().contains("0/101"), "{future}");
    range.fork = Fork::Vm;
    assert!(check(&good_page(3, 0x100)[1..], &range, 3, RULES).is_err());
}

#[test]
fn an_unlogged_relation_is_its_init_fork_twice() {
    let home = tempfile::tempdir().expect("temporary directory");
    let target = Target::new(home.path(), false, None, false);
    target.make_directory("base/5").expect("directory");
    let plan = Plan::new([fork(1, Fork::Init, 2), fork(2, Fork::Main, 0)]);
    let files = OpenFiles::new(target, &plan);
    let pages: Vec<Bytes> =
        [good_page(0, 1), good_page(1, 1)].iter().map(|page| Bytes::copy_from_slice(page)).collect();
    for batch in plan.batches() {
        let work: Vec<_> = batch.into_iter().map(|range| (range, plan.files(&range))).collect();
        files.write(&work, &pages, RULES).expect("written");
    }
    let read = |name: &str| std::fs::read(home.path().join("base/5").join(name)).expect("written");
    assert_eq!(read("1_init"), pages.concat());
    assert_eq!(read("1"), pages.concat());
    assert_eq!(read("2"), b"", "an empty relation has a file");
    assert!(files.open.lock().expect("not poisoned").is_empty(), "complete files are closed");
}

#[test]
fn too_few_pages_are_noticed() {
    let plan = Plan::new([fork(1, Fork::Main, 2)]);
    let target = Target::new(std::path::Path::new("/nowhere"), false, None, false);
    let files = OpenFiles::new(target, &plan);
    let work = vec![(range(1, 0, 2), plan.files(&range(1, 0, 2)))];
    assert!(files.write(&work, &[Bytes::from_static(&[0; BLCKSZ])], RULES).is_err());
}
