use super::*;
use object_store::memory::InMemory;
use object_store::path::Path;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::encode::{WalWriter, WriterStart};
use zenith_pgformat::wal::{RmgrId, WalError};
use zenith_store::{ClusterPaths, TimelineId};
use zenith_testkit::env::test_env;

const SYSTEM: u64 = 4711;

fn size() -> WalSegSize {
    WalSegSize::new(1 << 20).unwrap()
}

fn paths(id: u128) -> TimelinePaths {
    ClusterPaths::new(&Path::default(), "main").timeline(TimelineId(uuid::Uuid::from_u128(id)))
}

fn archive(objects: &Arc<InMemory>, id: u128) -> WalArchive {
    WalArchive::new(objects.clone(), paths(id), size(), SYSTEM)
}

fn segment_of(tli: Tli, segment: u64, system_identifier: u64) -> Vec<u8> {
    let lsn = Lsn(size().start_of(segment).0 + 40);
    let start = WriterStart { lsn, prev: Lsn(8), tli, seg_size: size(), system_identifier };
    let mut writer = WalWriter::new(start).unwrap();
    writer.append(RmgrId::XLOG, 0x20, 0, &[segment as u8; 100]);
    writer.finish()
}

fn file(tli: Tli, segment: u64) -> WalFile {
    WalFile::Segment { tli, segment }
}

#[tokio::test]
async fn a_segment_reads_back_and_again_the_same_is_no_news() {
    let (env, archive) = (test_env(1), archive(&Arc::default(), 1));
    let content = segment_of(1, 3, SYSTEM);
    assert_eq!(archive.put(&env, file(1, 3), &content).await, Ok(Stored::Stored));
    assert_eq!(archive.put(&env, file(1, 3), &content).await, Ok(Stored::AlreadyThere));
    assert_eq!(archive.get(file(1, 3)).await.unwrap().unwrap(), content);
    assert_eq!(archive.get(file(1, 4)).await, Ok(None));
}

#[tokio::test]
async fn other_content_under_the_same_name_fails_and_changes_nothing() {
    let (env, archive) = (test_env(1), archive(&Arc::default(), 1));
    let first = segment_of(1, 3, SYSTEM);
    archive.put(&env, file(1, 3), &first).await.unwrap();
    let mut other = first.clone();
    other[9000] ^= 1;
    let refused = archive.put(&env, file(1, 3), &other).await.unwrap_err();
    let (kept, offered) = (crc32c::crc32c(&first), crc32c::crc32c(&other));
    assert_eq!(
        refused,
        ArchiveError::Other { name: "000000010000000000000003".to_owned(), archived: kept, offered }
    );
    assert_eq!(archive.get(file(1, 3)).await.unwrap().unwrap(), first);

    let history = WalFile::History { tli: 2 };
    archive.put(&env, history, b"1\t0/300028\tfirst\n").await.unwrap();
    assert!(archive.put(&env, history, b"1\t0/300030\tother\n").await.is_err());
    assert_eq!(archive.get(history).await.unwrap().unwrap().as_ref(), b"1\t0/300028\tfirst\n");
}

#[tokio::test]
async fn a_segment_that_another_compressor_stored_counts_as_the_same() {
    let objects: Arc<InMemory> = Arc::default();
    let (env, archive) = (test_env(1), archive(&objects, 1));
    let content = segment_of(1, 3, SYSTEM);
    let other = Bytes::from(zstd::encode_all(content.as_slice(), 19).unwrap());
    let path = paths(1).wal_file(1, "000000010000000000000003");
    zenith_store::create(&*objects, &env, &path, other).await.unwrap();
    assert_eq!(archive.put(&env, file(1, 3), &content).await, Ok(Stored::AlreadyThere));
}

#[tokio::test]
async fn a_segment_that_is_not_what_its_name_says_is_not_acknowledged() {
    let (env, archive) = (test_env(1), archive(&Arc::default(), 1));
    let good = segment_of(1, 3, SYSTEM);
    let mut wrong_magic = good.clone();
    wrong_magic[0] ^= 1;
    for (what, content, wal_file) in [
        ("short", good[..good.len() - 1].to_vec(), file(1, 3)),
        ("empty", Vec::new(), file(1, 3)),
        ("magic", wrong_magic, file(1, 3)),
        ("another cluster", segment_of(1, 3, 99), file(1, 3)),
        ("another address", segment_of(1, 4, SYSTEM), file(1, 3)),
        ("a later TLI", segment_of(2, 3, SYSTEM), file(1, 3)),
        ("a partial of another cluster", segment_of(1, 3, 99), WalFile::Partial { tli: 1, segment: 3 }),
        ("no history", b"what".to_vec(), WalFile::History { tli: 2 }),
    ] {
        assert!(archive.put(&env, wal_file, &content).await.is_err(), "{what}");
        assert_eq!(archive.get(wal_file).await, Ok(None), "{what}");
    }
}

#[tokio::test]
async fn the_first_segment_after_a_promotion_begins_with_its_parents_pages() {
    let (env, archive) = (test_env(1), archive(&Arc::default(), 1));
    // Before the history file is there any lower TLI may be the parent.
    archive.put(&env, file(3, 2), &segment_of(1, 2, SYSTEM)).await.unwrap();
    archive.put(&env, WalFile::History { tli: 3 }, b"2\t0/300028\tpromoted\n").await.unwrap();
    archive.put(&env, file(3, 3), &segment_of(2, 3, SYSTEM)).await.unwrap();
    let foreign = archive.put(&env, file(3, 4), &segment_of(1, 4, SYSTEM)).await.unwrap_err();
    assert!(
        matches!(foreign, ArchiveError::Check { source: SegmentCheckError::Tli { page: 1, file: 3 }, .. }),
        "{foreign}"
    );
}

#[tokio::test]
async fn a_listing_has_the_complete_segments_of_one_tli_from_a_number_on() {
    let (env, archive) = (test_env(1), archive(&Arc::default(), 1));
    for segment in [5, 3, 4, 300] {
        archive.put(&env, file(1, segment), &segment_of(1, segment, SYSTEM)).await.unwrap();
    }
    archive.put(&env, file(2, 6), &segment_of(2, 6, SYSTEM)).await.unwrap();
    let partial = WalFile::Partial { tli: 1, segment: 6 };
    archive.put(&env, partial, &segment_of(1, 6, SYSTEM)).await.unwrap();
    archive.put(&env, WalFile::Backup { tli: 1, segment: 4, offset: 40 }, b"START").await.unwrap();
    archive.put(&env, WalFile::History { tli: 2 }, b"1\t0/600028\tpromoted\n").await.unwrap();
    assert_eq!(archive.list(1, 0).await.unwrap(), [3, 4, 5, 300]);
    assert_eq!(archive.list(1, 4).await.unwrap(), [4, 5, 300]);
    assert_eq!(archive.list(1, 301).await.unwrap(), [0; 0]);
    assert_eq!(archive.tlis().await.unwrap(), [1, 2]);
    let histories = archive.histories(1).await.unwrap();
    assert_eq!(histories.iter().map(History::tli).collect::<Vec<_>>(), [2]);
    assert!(archive.histories(2).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_damaged_object_is_named_and_never_handed_out() {
    let objects: Arc<InMemory> = Arc::default();
    let (env, archive) = (test_env(1), archive(&objects, 1));
    let path = paths(1).wal_file(1, "000000010000000000000003");
    let mut frame = frame::compress(&segment_of(1, 3, SYSTEM)).unwrap().to_vec();
    let middle = frame.len() / 2;
    frame[middle] ^= 1;
    zenith_store::create(&*objects, &env, &path, frame.into()).await.unwrap();
    let error = archive.get(file(1, 3)).await.unwrap_err();
    assert!(error.to_string().contains("000000010000000000000003.zst is damaged"), "{error}");
}

#[tokio::test]
async fn an_ancestor_answers_only_for_the_childs_own_history() {
    let (env, objects) = (test_env(1), Arc::<InMemory>::default());
    let (child, parent) = (archive(&objects, 1), archive(&objects, 2));
    for segment in [2, 3, 4] {
        parent.put(&env, file(2, segment), &segment_of(2, segment, SYSTEM)).await.unwrap();
        parent.put(&env, file(1, segment), &segment_of(1, segment, SYSTEM)).await.unwrap();
    }
    parent.put(&env, WalFile::History { tli: 2 }, b"1\t0/300028\tpromoted\n").await.unwrap();
    parent.put(&env, WalFile::History { tli: 3 }, b"2\t0/500028\tthe parent's future\n").await.unwrap();
    child.put(&env, file(3, 4), &segment_of(3, 4, SYSTEM)).await.unwrap();
    let branch = BranchPoint { lsn: Lsn(0x40_0000), tli: 2 };
    let chain = ArchiveChain::new(child.clone(), vec![(parent.clone(), branch)]).await.unwrap();
    let found = async |file| chain.find(file).await.unwrap().is_some();
    assert!(found(file(3, 4)).await, "its own");
    assert!(found(file(2, 3)).await && found(file(1, 2)).await, "before the branch point");
    assert!(!found(file(2, 4)).await, "begins at the branch point");
    assert!(found(WalFile::History { tli: 2 }).await);
    assert!(!found(WalFile::History { tli: 3 }).await, "the parent's future");
    assert!(ArchiveChain::alone(child).find(file(2, 3)).await.unwrap().is_none());

    // Branched off before the promotion: TLI 2 is not of this history.
    let early = BranchPoint { lsn: Lsn(0x30_0000), tli: 1 };
    let other = ArchiveChain::new(archive(&objects, 3), vec![(parent, early)]).await.unwrap();
    assert!(other.find(file(1, 2)).await.unwrap().is_some());
    assert!(other.find(file(2, 2)).await.unwrap().is_none());
}

#[test]
fn the_check_names_what_is_wrong() {
    let content = segment_of(1, 3, SYSTEM);
    assert_eq!(check_segment(&content, 3, size(), SYSTEM), Ok(1));
    let error = check_segment(&content, 3, size(), 99).unwrap_err();
    assert!(matches!(error, SegmentCheckError::Page(WalError::Invalid { .. })), "{error}");
}
