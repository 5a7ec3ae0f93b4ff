use super::*;
use crate::horizon::raise_horizon;
use crate::testing::{identity, names_on, numbered, position};
use object_store::ObjectStore;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;
use zenith_store::Store;
use zenith_testkit::env::{JumpingClock, test_env};
use zenith_testkit::faults::{AMBIGUOUS, Fault, FaultStore, Operation, Rule};

/// Timeline `n` off timeline `parent`.
fn branch(n: u64, parent: u64, lsn: u64, tli: u32) -> Branch {
    let ancestor = Ancestor { timeline: numbered(parent), lsn: Lsn(lsn), tli };
    Branch::new(numbered(n), ancestor, Lsn(lsn - 8))
}

fn pin_of(branch: u64, timeline: u64, lsn: u64) -> Pin {
    Pin { timeline: numbered(timeline), lsn: Lsn(lsn), holder: Holder::Branch(numbered(branch)) }
}

/// The timeline "main", number 1.
async fn with_main(seed: u64) -> (Store, Names) {
    let store = Store::memory();
    let names = names_on(&store, seed);
    names.create_timeline("main", &identity(1)).await.unwrap();
    (store, names)
}

async fn raise(names: &Names, timeline: u64, lsn: u64) {
    let paths = names.cluster.timeline(numbered(timeline));
    raise_horizon(&*names.objects, &test_env(99), &paths, Lsn(lsn)).await.unwrap();
}

#[tokio::test]
async fn a_branch_exists_only_once_its_name_does() {
    let (store, names) = with_main(1).await;
    let faulty = FaultStore::new(Arc::clone(&store.objects), Arc::new(JumpingClock::default()), 0);
    faulty.faults().add(Rule::new(Fault::Denied).on(Operation::Put).at("names/"));
    let broken = names_on(&store.wrapped(|_| faulty), 2);
    let branch = branch(5, 1, 400, 1);
    assert!(broken.create_branch("test", &branch).await.is_err());
    assert!(matches!(names.resolve("test").await, Err(NameError::NotFound { .. })));
    names.create_branch("test", &branch).await.unwrap();
    assert_eq!(names.resolve("test").await.unwrap(), numbered(5));
    let made = names.identity(numbered(5)).await.unwrap();
    assert_eq!(made, Identity { ancestor: Some(branch.ancestor), ..identity(5) });
    let paths = names.cluster.timeline(numbered(5));
    let manifest = ManifestStore::new(Arc::clone(&store.objects), test_env(3), paths, made.ancestor);
    let root = manifest.latest().await.unwrap();
    let start = SlicedPosition { prev: Lsn(392), ..position(2, 400) };
    assert_eq!((root.version, root.sliced.clone()), (1, Some(start)));
    assert_eq!(names.pins().await.unwrap(), [pin_of(5, 1, 400)]);
}

#[tokio::test]
async fn every_fault_at_every_put_of_a_creation_leaves_a_branch_that_is_pinned_or_none() {
    for fault in AMBIGUOUS {
        for skipped in 0..5 {
            let (store, names) = with_main(1).await;
            let faulty = FaultStore::new(Arc::clone(&store.objects), Arc::new(JumpingClock::default()), 0);
            faulty.faults().add(Rule::new(fault).on(Operation::Put).after(skipped).times(1));
            let broken = names_on(&store.wrapped(|_| faulty), 2);
            let made = broken.create_branch("test", &branch(5, 1, 400, 1)).await;
            let named = names.resolve("test").await;
            assert!(made.is_err() || named.is_ok(), "{fault:?} at put {skipped}: {made:?}");
            let pins = names.pins().await.unwrap();
            assert!(named.is_err() || pins == [pin_of(5, 1, 400)], "{fault:?} at put {skipped}");
            names.create_branch("test", &branch(5, 1, 400, 1)).await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_a_branch_reads_of_each_ancestor_is_pinned_there() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create_branch("past", &branch(3, 2, 500, 2)).await.unwrap();
    names.create_branch("same", &branch(4, 2, 400, 1)).await.unwrap();
    names.create_branch("before", &branch(5, 2, 300, 1)).await.unwrap();
    let mut pins = names.pins().await.unwrap();
    pins.sort();
    let mut expected = [
        pin_of(2, 1, 400),
        pin_of(3, 2, 500),
        pin_of(4, 2, 400),
        pin_of(5, 2, 300),
        // The child's own pin keeps nothing below its branch point.
        pin_of(5, 1, 300),
    ];
    expected.sort();
    assert_eq!(pins, expected);
}

#[tokio::test]
async fn what_was_collected_is_refused_and_leaves_no_pin() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    raise(&names, 1, 350).await;
    raise(&names, 1, 300).await;
    let refused = names.create_branch("late", &branch(3, 2, 349, 1)).await.unwrap_err();
    let text = refused.to_string();
    assert!(text.contains("0/15D") && text.contains("0/15E"), "{text}");
    names.create_branch("right", &branch(4, 1, 350, 1)).await.unwrap();
    // The child's pin keeps its branch point, whatever the horizon.
    raise(&names, 1, 900).await;
    names.create_branch("same", &branch(5, 2, 400, 1)).await.unwrap();
    names.create_branch("past", &branch(6, 2, 401, 2)).await.unwrap();
    let pins = names.pins().await.unwrap();
    assert!(pins.iter().all(|pin| pin.holder != Holder::Branch(numbered(3))), "{pins:?}");
    assert!(matches!(names.resolve("late").await, Err(NameError::NotFound { .. })));
}

#[tokio::test]
async fn a_parent_that_does_not_exist_gets_no_pin() {
    let (_store, names) = with_main(1).await;
    let refused = names.create_branch("test", &branch(3, 2, 400, 1)).await.unwrap_err();
    assert!(matches!(refused, NameError::NoTimeline { .. }), "{refused}");
    assert!(names.pins().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_branch_with_branches_is_deleted_after_them_and_a_root_never() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create_branch("grandchild", &branch(3, 2, 500, 2)).await.unwrap();
    let refused = names.delete_branch("child").await.unwrap_err().to_string();
    assert!(refused.contains("grandchild"), "{refused}");
    let refused = names.delete_branch("main").await.unwrap_err();
    assert!(matches!(refused, NameError::NoBranch { .. }), "{refused}");
    assert_eq!(names.delete_branch("grandchild").await.unwrap(), numbered(3));
    assert_eq!(names.delete_branch("child").await.unwrap(), numbered(2));
    assert!(matches!(names.delete_branch("child").await, Err(NameError::NotFound { .. })));
    names.create_branch("child", &branch(4, 1, 600, 1)).await.unwrap();
}

#[tokio::test]
async fn of_two_names_one_is_given_up_whatever_hangs_on_the_timeline() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create("other", numbered(1)).await.unwrap();
    names.delete_branch("other").await.unwrap();
    assert_eq!(names.resolve("main").await.unwrap(), numbered(1));
}

#[tokio::test]
async fn a_rename_that_was_interrupted_goes_on_and_takes_no_name_from_another() {
    let (store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    assert!(matches!(names.rename("child", "main").await, Err(NameError::Taken { .. })));
    assert!(matches!(names.rename("child", "no/name").await, Err(NameError::Malformed { .. })));
    assert!(matches!(names.rename("nobody", "x").await, Err(NameError::NotFound { .. })));
    let faulty = FaultStore::new(Arc::clone(&store.objects), Arc::new(JumpingClock::default()), 0);
    faulty.faults().add(Rule::new(Fault::Denied).on(Operation::Put).after(1));
    assert!(names_on(&store.wrapped(|_| faulty), 2).rename("child", "test").await.is_err());
    assert_eq!(names.list().await.unwrap().len(), 3);
    names.rename("child", "test").await.unwrap();
    names.rename("test", "test").await.unwrap();
    let left = [("main".to_owned(), numbered(1)), ("test".to_owned(), numbered(2))];
    assert_eq!(names.list().await.unwrap(), left);
}

#[test]
fn a_timeline_is_reached_by_its_name_or_through_its_branches() {
    let pins = [pin_of(2, 1, 10), pin_of(3, 2, 20), pin_of(5, 4, 30), pin_of(7, 6, 40), pin_of(6, 7, 40)];
    let reached = reached([numbered(3), numbered(8)], &pins);
    assert_eq!(reached, BTreeSet::from([numbered(1), numbered(2), numbered(3), numbered(8)]));
}

/// Runs both, one request of either at a time; `next` says whose.
async fn interleaved<A, B>(
    a: impl Future<Output = A>,
    b: impl Future<Output = B>,
    mut next: impl FnMut() -> bool,
) -> (A, B) {
    let (mut a, mut b) = (pin!(a), pin!(b));
    let (mut a_done, mut b_done) = (None, None);
    loop {
        let first = next();
        if a_done.is_none() && (first || b_done.is_some()) {
            a_done = polled_once(a.as_mut()).await;
        } else if b_done.is_none() {
            b_done = polled_once(b.as_mut()).await;
        }
        match (a_done, b_done) {
            (Some(a), Some(b)) => return (a, b),
            pending => (a_done, b_done) = pending,
        }
        // Wakes what waited.
        tokio::task::yield_now().await;
    }
}

async fn polled_once<T>(mut future: std::pin::Pin<&mut impl Future<Output = T>>) -> Option<T> {
    poll_fn(|context| match future.as_mut().poll(context) {
        Poll::Ready(done) => Poll::Ready(Some(done)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

/// The first 13 steps in every order, and then either of the two to its end.
const ORDERS: u32 = 1 << 14;

/// The bits of a number, lowest first; the highest one again and again.
fn order(bits: u32) -> impl FnMut() -> bool {
    let mut at = 0;
    move || {
        let first = bits >> at & 1 == 1;
        at = (at + 1).min(ORDERS.ilog2() - 1);
        first
    }
}

/// The same store, of which every request waits once.
fn step_by_step(store: &Store) -> Store {
    let steps = FaultStore::new(Arc::clone(&store.objects), Arc::new(JumpingClock::default()), 0);
    steps.faults().add(Rule::new(Fault::Latency(Duration::from_millis(1))));
    store.wrapped(|_| steps)
}

async fn copy_of(store: &Store) -> Store {
    use futures::StreamExt;
    use object_store::ObjectStoreExt;
    let copy = Store::memory();
    let mut objects = store.objects.list(None);
    while let Some(object) = objects.next().await {
        let path = object.unwrap().location;
        let bytes = store.objects.get(&path).await.unwrap().bytes().await.unwrap();
        copy.objects.put(&path, bytes.into()).await.unwrap();
    }
    copy
}

#[tokio::test]
async fn in_any_order_with_gc_a_branch_is_refused_or_gc_sees_its_pin() {
    let (start, _) = with_main(1).await;
    let (mut created, mut refused) = (0, 0);
    for bits in 0..ORDERS {
        let store = copy_of(&start).await;
        let steps = step_by_step(&store);
        let (branching, collecting) = (names_on(&steps, 2), names_on(&steps, 3));
        let branch = branch(2, 1, 400, 1);
        let create = branching.create_branch("test", &branch);
        let collect = async {
            raise(&collecting, 1, 500).await;
            collecting.pins().await.unwrap()
        };
        let (made, seen) = interleaved(create, collect, order(bits)).await;
        match made {
            Ok(()) => {
                created += 1;
                assert_eq!(seen, [pin_of(2, 1, 400)], "{bits:b}");
            }
            Err(NameError::Collected { .. }) => {
                refused += 1;
                let names = names_on(&store, 4);
                assert!(names.resolve("test").await.is_err() && names.pins().await.unwrap().is_empty());
            }
            Err(error) => panic!("{bits:b}: {error}"),
        }
    }
    assert!(created > 0 && refused > 0, "{created} created, {refused} refused");
}

#[tokio::test]
async fn in_any_order_with_a_delete_what_a_new_branch_reads_stays_reached() {
    let (start, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    let (mut deleted, mut refused) = (0, 0);
    for bits in 0..ORDERS {
        let store = copy_of(&start).await;
        let steps = step_by_step(&store);
        let (branching, deleting) = (names_on(&steps, 2), names_on(&steps, 3));
        let branch = branch(3, 2, 500, 2);
        let create = branching.create_branch("grandchild", &branch);
        let (made, gone) = interleaved(create, deleting.delete_branch("child"), order(bits)).await;
        made.unwrap();
        match gone {
            Ok(_) => deleted += 1,
            Err(NameError::HasBranches { .. }) => refused += 1,
            Err(error) => panic!("{bits:b}: {error}"),
        }
        let names = names_on(&store, 4);
        let (named, pins) = (names.list().await.unwrap(), names.pins().await.unwrap());
        let reached = reached(named.into_iter().map(|(_, id)| id), &pins);
        assert_eq!(reached, BTreeSet::from([numbered(1), numbered(2), numbered(3)]), "{bits:b}");
    }
    assert!(deleted > 0 && refused > 0, "{deleted} deleted, {refused} refused");
}
