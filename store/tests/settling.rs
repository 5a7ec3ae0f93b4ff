//! Settling a lost answer of a put where the object is large: as a 1 GB WAL segment is.

use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path;
use std::sync::{Arc, LazyLock};
use zenith_store::{CountingStore, Counts, Creation, Store, create};
use zenith_testkit::env::{JumpingClock, test_env};
use zenith_testkit::faults::{Fault, FaultStore, Faults, Operation, Rule};

const PART: u64 = 16 << 20;

struct Lossy {
    objects: FaultStore,
    faults: Faults,
    counts: Arc<Counts>,
}

/// A store whose first put is done and its answer lost.
fn lossy() -> Lossy {
    let counting = CountingStore::new(Store::memory().objects);
    let counts = counting.counts();
    let objects = FaultStore::new(Arc::new(counting), Arc::new(JumpingClock::default()), 1);
    let faults = objects.faults();
    faults.add(Rule::new(Fault::AppliedButLost).on(Operation::Put).times(1));
    Lossy { objects, faults, counts }
}

/// Two parts and a bit, nowhere the same for long.
fn large() -> Bytes {
    static LARGE: LazyLock<Bytes> = LazyLock::new(|| {
        let words = (0..(2 * PART + 12_345) / 8).map(|n| n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        words.collect::<Vec<[u8; 8]>>().into_flattened().into()
    });
    LARGE.clone()
}

async fn created(objects: &dyn ObjectStore, bytes: &Bytes) -> Creation {
    create(objects, &test_env(1), &Path::from("wal/large"), bytes.clone()).await.expect("settled")
}

#[tokio::test]
async fn a_large_object_whose_answer_was_lost_is_recognised_part_by_part() {
    let store = lossy();
    let bytes = large();
    assert_eq!(created(&store.objects, &bytes).await, Creation::Same);
    assert_eq!(store.faults.fired().len(), 1);
    let counts = store.counts.snapshot();
    assert_eq!((counts.gets, counts.bytes_got), (3, bytes.len() as u64));
}

#[tokio::test]
async fn a_part_that_breaks_off_is_read_again_and_no_other() {
    let store = lossy();
    store.faults.add(Rule::new(Fault::Truncated).on(Operation::Get).after(1).times(1));
    let bytes = large();
    assert_eq!(created(&store.objects, &bytes).await, Creation::Same);
    assert_eq!(store.faults.fired().len(), 2);
    let counts = store.counts.snapshot();
    assert_eq!((counts.gets, counts.bytes_got), (4, bytes.len() as u64 + PART));
}

#[tokio::test]
async fn another_large_object_under_the_name_is_another_wherever_it_differs() {
    let store = lossy();
    let bytes = large();
    assert_eq!(created(&store.objects, &bytes).await, Creation::Same);
    for (position, gets) in [(0, 1), (PART - 1, 1), (PART, 2), (bytes.len() as u64 - 1, 3)] {
        let mut other = bytes.to_vec();
        other[position as usize] ^= 1;
        let before = store.counts.snapshot();
        assert_eq!(created(&store.objects, &Bytes::from(other)).await, Creation::Other, "{position}");
        assert_eq!(store.counts.snapshot().since(&before).gets, gets, "{position}");
    }
    for length in [0, PART, bytes.len() as u64 - 1] {
        let shorter = bytes.slice(..length as usize);
        assert_eq!(created(&store.objects, &shorter).await, Creation::Other, "{length}");
    }
    let longer = Bytes::from([&bytes[..], b"x"].concat());
    assert_eq!(created(&store.objects, &longer).await, Creation::Other);
}
