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
async fn a_computes_pin_keeps_the_timeline_whose_history_it_reads_until_it_is_ended() {
    let (_store, names) = with_main(30).await;
    names.create_branch("test", &branch(5, 1, 400, 1)).await.unwrap();
    let [early, late] = [uuid::Uuid::from_u128(71), uuid::Uuid::from_u128(72)];
    let pin =
        |timeline, lsn, id| Pin { timeline: numbered(timeline), lsn: Lsn(lsn), holder: Holder::Compute(id) };
    // What the branch has not written itself is main's.
    assert_eq!(names.pin_compute(early, numbered(5), Lsn(400)).await.unwrap(), pin(1, 400, early));
    assert_eq!(names.pin_compute(late, numbered(5), Lsn(401)).await.unwrap(), pin(5, 401, late));
    assert_eq!(names.pin_compute(late, numbered(5), Lsn(401)).await.unwrap(), pin(5, 401, late));
    assert!(names.pin_compute(late, numbered(5), Lsn(402)).await.is_err());
    raise(&names, 1, 401).await;
    let refused = names.pin_compute(uuid::Uuid::from_u128(73), numbered(5), Lsn(400)).await.unwrap_err();
    assert!(matches!(refused, NameError::Collected { from: Lsn(401), .. }), "{refused}");
    // What was pinned before the horizon rose stays.
    names.pin_compute(early, numbered(5), Lsn(400)).await.unwrap();
    assert_eq!(names.pins().await.unwrap().len(), 3);
    assert_eq!(names.end_pin(early).await.unwrap(), pin(1, 400, early));
    assert!(matches!(names.end_pin(early).await, Err(NameError::NoPin { .. })));
    // A branch's pin is not for anybody to end.
    assert!(matches!(names.end_pin(numbered(5).0).await, Err(NameError::NoPin { .. })));
    assert_eq!(names.pins().await.unwrap().len(), 2);
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
async fn a_branch_is_made_off_and_pinned_in_the_timeline_whose_own_history_holds_it() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create_branch("past", &branch(3, 2, 500, 2)).await.unwrap();
    let same = names.create_branch("same", &branch(4, 3, 400, 1)).await.unwrap();
    assert_eq!(same.timeline, numbered(1));
    names.create_branch("before", &branch(5, 3, 450, 2)).await.unwrap();
    let mut pins = names.pins().await.unwrap();
    pins.sort();
    let mut expected = [pin_of(2, 1, 400), pin_of(3, 2, 500), pin_of(4, 1, 400), pin_of(5, 2, 450)];
    expected.sort();
    assert_eq!(pins, expected);
    for (n, parent) in [(3, 2), (4, 1), (5, 2)] {
        let identity = names.identity(numbered(n)).await.unwrap();
        assert_eq!(identity.ancestor.map(|above| above.timeline), Some(numbered(parent)), "{n}");
    }
}

#[tokio::test]
async fn a_chain_of_branches_ends_before_it_is_too_long_to_be_read() {
    let (_store, names) = with_main(1).await;
    let last = MAX_ANCESTORS as u64 + 1;
    for n in 2..=last {
        names.create_branch(&format!("b{n}"), &branch(n, n - 1, 100 * n, 1)).await.unwrap();
    }
    let refused = names.create_branch("deep", &branch(last + 1, last, 100_000, 1)).await.unwrap_err();
    assert!(matches!(refused, NameError::TooDeep { .. }), "{refused}");
    assert_eq!(names.pins().await.unwrap().len(), MAX_ANCESTORS);
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
    // A branch that exists keeps its pin, whatever the horizon, and whoever makes it again.
    raise(&names, 1, 900).await;
    names.create_branch("right", &branch(4, 1, 350, 1)).await.unwrap();
    names.create_branch("past", &branch(6, 2, 401, 2)).await.unwrap();
    assert!(names.pins().await.unwrap().contains(&pin_of(4, 1, 350)));
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
    assert_eq!(names.delete_branch("grandchild").await.unwrap().timeline, numbered(3));
    assert_eq!(names.delete_branch("child").await.unwrap(), Deleted { timeline: numbered(2), left: vec![] });
    assert!(matches!(names.delete_branch("child").await, Err(NameError::NotFound { .. })));
    names.create_branch("child", &branch(4, 1, 600, 1)).await.unwrap();
}

#[tokio::test]
async fn of_two_names_one_is_given_up_whatever_hangs_on_the_timeline() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create("other", numbered(1)).await.unwrap();
    let deleted = names.delete_branch("other").await.unwrap();
    assert_eq!(deleted, Deleted { timeline: numbered(1), left: vec!["main".to_owned()] });
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

#[tokio::test]
async fn what_has_no_name_is_known_by_what_was_branched_off_it() {
    let (_store, names) = with_main(1).await;
    names.create_branch("child", &branch(2, 1, 400, 1)).await.unwrap();
    names.create_branch("grandchild", &branch(3, 2, 500, 2)).await.unwrap();
    names.create_branch("other", &branch(4, 1, 600, 1)).await.unwrap();
    names.tombstone("child", numbered(2)).await.unwrap();
    names.tombstone("other", numbered(4)).await.unwrap();
    let known = names.known().await.unwrap();
    let known: BTreeSet<TimelineId> = known.iter().map(|one| one.identity.timeline).collect();
    assert_eq!(known, BTreeSet::from([numbered(1), numbered(2), numbered(3)]));
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
            Ok(_) => {
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
        let known = names_on(&store, 4).known().await.unwrap();
        let known: BTreeSet<TimelineId> = known.iter().map(|one| one.identity.timeline).collect();
        assert_eq!(known, BTreeSet::from([numbered(1), numbered(2), numbered(3)]), "{bits:b}");
    }
    assert!(deleted > 0 && refused > 0, "{deleted} deleted, {refused} refused");
}

#[tokio::test]
async fn in_any_order_with_a_rename_a_list_has_the_timeline_once_or_twice() {
    let (start, _) = with_main(1).await;
    let (mut old, mut new) = (0, 0);
    for bits in 0..ORDERS {
        let store = copy_of(&start).await;
        let steps = step_by_step(&store);
        let (renaming, listing) = (names_on(&steps, 2), names_on(&steps, 3));
        let (renamed, listed) =
            interleaved(renaming.rename("main", "prod"), listing.list(), order(bits)).await;
        renamed.unwrap();
        let listed = listed.unwrap();
        assert!(!listed.is_empty(), "{bits:b}");
        old += usize::from(listed.iter().any(|(name, _)| name == "main"));
        new += usize::from(listed.iter().any(|(name, _)| name == "prod"));
    }
    assert!(old > 0 && new > 0, "{old} times the old name, {new} times the new one");
}

#[tokio::test]
async fn in_any_order_two_that_give_names_up_leave_a_timeline_with_one() {
    let (start, names) = with_main(1).await;
    names.create("prod", numbered(1)).await.unwrap();
    for bits in 0..ORDERS {
        let store = copy_of(&start).await;
        let steps = step_by_step(&store);
        let (first, second) = (names_on(&steps, 2), names_on(&steps, 3));
        drop(interleaved(first.delete_branch("main"), second.delete_branch("prod"), order(bits)).await);
        assert!(!names_on(&store, 4).list().await.unwrap().is_empty(), "{bits:b}");
    }
}
