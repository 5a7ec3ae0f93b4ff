use super::*;
use crate::boundary::raise_boundary;
use crate::entry::LayerEntry;
use crate::root::{Role, Root};
use crate::testing::*;
use object_store::ObjectStoreExt;
use std::collections::HashSet;
use std::sync::atomic::{AtomicU64, Ordering};
use zenith_pgformat::Lsn;
use zenith_store::{Clock, CountingStore, Env, Store};
use zenith_testkit::conformance::folder_store;
use zenith_testkit::env::{JumpingClock, test_env};
use zenith_testkit::faults::{AMBIGUOUS, Fault, FaultStore, Operation, Rule};

/// Reads every version from 1 and checks that they are consecutive and each follows from the one before.
async fn whole_history(store: &Store) -> Vec<Arc<Root>> {
    let reader = manifest(store, test_env(900));
    let newest = reader.latest().await.unwrap();
    let mut versions: Vec<Arc<Root>> = Vec::new();
    for n in 1..=newest.version {
        let root = reader.version(n).await.unwrap();
        if let Some(before) = versions.last() {
            assert!(before.epochs.slicer <= root.epochs.slicer && before.bases.len() <= root.bases.len());
        }
        versions.push(root);
    }
    let ids: HashSet<Uuid> = versions.iter().map(|root| root.commit_id).collect();
    assert_eq!(ids.len(), versions.len(), "no commit is there twice");
    versions
}

async fn many_commit_at_once(store: Store) {
    const WRITERS: u64 = 12;
    manifest(&store, test_env(0)).commit(&register(&base(1, 1, 10, 20))).await.unwrap();
    let writers = (0..WRITERS).map(|writer| {
        let manifest = manifest(&store, test_env(100 + writer));
        tokio::spawn(async move {
            let mut committed = Vec::new();
            for n in 0..3 {
                let number = 1000 + writer * 10 + n;
                let root =
                    manifest.commit(&register(&base(number, 1, number, number + 1))).await.unwrap().root;
                assert!(root.base(crate::entry::BaseId(id(number))).is_some());
                committed.push(root);
            }
            committed
        })
    });
    let committed: Vec<Arc<Root>> =
        futures::future::join_all(writers).await.into_iter().flat_map(Result::unwrap).collect();
    let history = whole_history(&store).await;
    assert_eq!(history.len() as u64, 1 + 3 * WRITERS);
    assert_eq!(history.last().unwrap().bases.len() as u64, 1 + 3 * WRITERS);
    for root in committed {
        assert_eq!(history[root.version as usize - 1], root, "what was reported is what is there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_all_commit_each_once_in_memory() {
    many_commit_at_once(Store::memory()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_writers_all_commit_each_once_on_a_folder() {
    let (store, _directory) = folder_store();
    many_commit_at_once(store).await;
}

#[tokio::test]
async fn a_slicer_that_was_replaced_can_commit_nothing() {
    let store = Store::memory();
    let (old, new) = (manifest(&store, test_env(1)), manifest(&store, test_env(2)));
    old.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
    let (first, _) = old.take_epoch(Role::Slicer).await.unwrap();
    old.commit(&slice_with_layer(first, 10, 100, 200)).await.unwrap();
    let (second, root) = new.take_epoch(Role::Slicer).await.unwrap();
    assert_eq!((first, second, root.epochs.slicer), (1, 2, 2));
    let fenced = old.commit(&slice_with_layer(first, 11, 200, 300)).await.unwrap_err();
    assert!(matches!(fenced, CommitError::Fenced(_)), "{fenced}");
    new.commit(&slice_with_layer(second, 12, 200, 300)).await.unwrap();
    let layers: Vec<Uuid> = new.latest().await.unwrap().recent.iter().map(|layer| layer.id).collect();
    assert_eq!(layers, [id(10), id(12)]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_slicers_each_slice_is_committed_once() {
    let store = Store::memory();
    manifest(&store, test_env(0)).commit(&register(&base(1, 1, 100, 120))).await.unwrap();
    let slicers = (0..6u64).map(|slicer| {
        let manifest = manifest(&store, test_env(10 + slicer));
        tokio::spawn(async move {
            let mut done = Vec::new();
            let Ok((epoch, mut root)) = manifest.take_epoch(Role::Slicer).await else { return done };
            for n in 0..20 {
                let from = root.sliced.as_ref().unwrap().lsn.0;
                let layer = 1000 + slicer * 100 + n;
                match manifest.commit(&slice_with_layer(epoch, layer, from, from + 1)).await {
                    Ok(committed) => root = committed.root,
                    Err(CommitError::Fenced(_)) => break,
                    Err(CommitError::Refused(_)) => unreachable!("only a newer epoch moves the position"),
                    Err(error) => panic!("{error}"),
                }
                done.push(id(layer));
            }
            done
        })
    });
    let done = futures::future::join_all(slicers).await.into_iter().map(Result::unwrap).collect::<Vec<_>>();
    let newest = whole_history(&store).await.pop().unwrap();
    let named: Vec<Uuid> = newest.recent.iter().map(|layer: &LayerEntry| layer.id).collect();
    assert_eq!(named.iter().collect::<HashSet<_>>(), done.iter().flatten().collect::<HashSet<_>>());
    assert_eq!(newest.sliced.as_ref().unwrap().lsn, Lsn(100 + named.len() as u64));
}

/// A slicer's work from beginning to end, each step tried again by a new process until it is done.
async fn slice_to_the_end(store: &Store, faulty: &Arc<FaultStore>, last: u64) {
    for process in 0..200 {
        let env = Env { clock: Arc::new(JumpingClock::default()), ..test_env(process) };
        let manifest = manifest_on(Arc::clone(faulty) as _, store, env);
        if slice_once(&manifest, last, process).await.is_ok() {
            return;
        }
    }
    panic!("200 processes were not enough");
}

async fn slice_once(manifest: &ManifestStore, last: u64, process: u64) -> Result<(), CommitError> {
    if manifest.latest().await?.sliced.is_none() {
        manifest.commit(&register(&base(1, 1, 100, 120))).await?;
    }
    let (epoch, mut root) = manifest.take_epoch(Role::Slicer).await?;
    loop {
        let from = root.sliced.as_ref().unwrap().lsn.0;
        if from >= last {
            return Ok(());
        }
        let layer = process * 1000 + from;
        root = manifest.commit(&slice_with_layer(epoch, layer, from, from + 1)).await?.root;
    }
}

fn sliced_once_each(newest: &Root, last: u64) {
    assert_eq!(newest.sliced.as_ref().unwrap().lsn, Lsn(last));
    let froms: Vec<u64> = newest.recent.iter().map(|layer| layer.lsn_from.0).collect();
    assert_eq!(froms, (100..last).collect::<Vec<_>>(), "every slice is there once");
}

#[tokio::test]
async fn every_fault_at_every_put_leaves_each_change_applied_exactly_once() {
    for fault in AMBIGUOUS {
        for at in 0..14 {
            for times in [1, 9] {
                let store = Store::memory();
                let clock = Arc::new(JumpingClock::default());
                let faulty = Arc::new(FaultStore::new(Arc::clone(&store.objects), clock, 0));
                faulty.faults().add(Rule::new(fault).on(Operation::Put).after(at).times(times));
                slice_to_the_end(&store, &faulty, 105).await;
                assert!(!faulty.faults().fired().is_empty());
                sliced_once_each(whole_history(&store).await.last().unwrap(), 105);
            }
        }
    }
}

#[tokio::test]
async fn random_faults_everywhere_leave_each_change_applied_exactly_once() {
    for seed in 0..40 {
        let store = Store::memory();
        let clock = Arc::new(JumpingClock::default());
        let faulty = Arc::new(FaultStore::new(Arc::clone(&store.objects), clock, seed));
        for fault in AMBIGUOUS {
            faulty.faults().add(Rule::new(fault).on(Operation::Put).percent(6));
        }
        for fault in [Fault::Unavailable, Fault::TimedOut, Fault::Truncated] {
            faulty.faults().add(Rule::new(fault).on(Operation::Get).percent(4));
            faulty.faults().add(Rule::new(fault).on(Operation::List).percent(4));
        }
        slice_to_the_end(&store, &faulty, 112).await;
        assert!(!faulty.faults().fired().is_empty());
        sliced_once_each(whole_history(&store).await.last().unwrap(), 112);
    }
}

#[tokio::test]
async fn a_lost_answer_is_settled_within_the_commit() {
    for fault in [Fault::AppliedButLost, Fault::AppliedButExists] {
        let store = Store::memory();
        let clock = Arc::new(JumpingClock::default());
        let faulty = Arc::new(FaultStore::new(Arc::clone(&store.objects), clock, 0));
        faulty.faults().add(Rule::new(fault).on(Operation::Put).at("manifest/"));
        let manifest = manifest_on(faulty, &store, test_env(1));
        let committed = manifest.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
        assert_eq!(committed.root.version, 1);
        assert_eq!(whole_history(&store).await, [committed.root]);
    }
}

#[tokio::test]
async fn what_cannot_be_settled_is_unknown_and_deletes_nothing() {
    let store = Store::memory();
    let clock = Arc::new(JumpingClock::default());
    let counting = Arc::new(CountingStore::new(Arc::clone(&store.objects)));
    let faulty = Arc::new(FaultStore::new(Arc::clone(&counting) as _, clock, 0));
    faulty.faults().add(Rule::new(Fault::AppliedButLost).on(Operation::Put).at("manifest/"));
    let manifest = manifest_on(Arc::clone(&faulty) as _, &store, test_env(1));
    faulty.faults().add(Rule::new(Fault::TimedOut).on(Operation::Get).after(3));
    let unknown = manifest.commit(&register(&base(1, 1, 100, 120))).await.unwrap_err();
    assert!(matches!(unknown, CommitError::Unknown { version: 1, .. }), "{unknown}");
    assert_eq!(counting.counts().snapshot().deletes, 0);
    faulty.faults().clear();
    assert_eq!(manifest.latest().await.unwrap().bases.len(), 1, "it had been committed");
}

#[tokio::test]
async fn a_definite_refusal_of_the_store_commits_nothing() {
    let store = Store::memory();
    let faulty = FaultStore::new(Arc::clone(&store.objects), Arc::new(JumpingClock::default()), 0);
    faulty.faults().add(Rule::new(Fault::Denied).on(Operation::Put));
    let manifest = manifest_on(Arc::new(faulty), &store, test_env(1));
    let denied = manifest.commit(&register(&base(1, 1, 100, 120))).await.unwrap_err();
    assert!(
        matches!(&denied, CommitError::Manifest(ManifestError::Store(StoreError::Denied { .. }))),
        "{denied}"
    );
}

/// A clock on which another process acts while this one sleeps: latency of a request becomes a stall.
struct Meanwhile<F> {
    act: F,
    slept: AtomicU64,
}

impl<F> std::fmt::Debug for Meanwhile<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Meanwhile")
    }
}

#[async_trait::async_trait]
impl<F: AsyncAct> Clock for Meanwhile<F> {
    fn now(&self) -> std::time::SystemTime {
        std::time::SystemTime::UNIX_EPOCH
    }

    fn elapsed(&self) -> Duration {
        Duration::ZERO
    }

    async fn sleep(&self, _pause: Duration) {
        self.act.act(self.slept.fetch_add(1, Ordering::SeqCst)).await;
    }
}

#[async_trait::async_trait]
trait AsyncAct: Send + Sync + 'static {
    async fn act(&self, time: u64);
}

fn stalling(store: &Store, times: u64, act: impl AsyncAct) -> ManifestStore {
    let clock = Arc::new(Meanwhile { act, slept: AtomicU64::new(0) });
    let faulty = FaultStore::new(Arc::clone(&store.objects), clock, 0);
    let stall =
        Rule::new(Fault::Latency(Duration::from_secs(60))).on(Operation::Put).at("manifest/").times(times);
    faulty.faults().add(stall);
    manifest_on(Arc::new(faulty), store, test_env(7))
}

struct Overtake(ManifestStore);

#[async_trait::async_trait]
impl AsyncAct for Overtake {
    async fn act(&self, _time: u64) {
        self.0.take_epoch(Role::Gc).await.unwrap();
    }
}

#[tokio::test]
async fn a_writer_that_is_always_overtaken_gives_up_after_a_bounded_number_of_tries() {
    let store = Store::memory();
    let unlucky = stalling(&store, u64::MAX, Overtake(manifest(&store, test_env(8))));
    let conflict = unlucky.commit(&register(&base(1, 1, 100, 120))).await.unwrap_err();
    assert!(matches!(conflict, CommitError::Conflict { tries: CONFLICT_TRIES, .. }), "{conflict}");
    let history = whole_history(&store).await;
    assert_eq!(history.len() as u32, CONFLICT_TRIES);
    assert!(history.iter().all(|root| root.bases.is_empty()));
}

#[tokio::test]
async fn a_writer_that_is_overtaken_for_a_while_commits_on_the_newest_version() {
    let store = Store::memory();
    let unlucky = stalling(&store, 5, Overtake(manifest(&store, test_env(8))));
    let committed = unlucky.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
    assert_eq!((committed.root.version, committed.root.epochs.gc), (6, 5));
}

/// GC passes over the stalled writer's number: ten more versions, of which the lower eight are collected.
struct Collect {
    store: Store,
    take_over: bool,
}

#[async_trait::async_trait]
impl AsyncAct for Collect {
    async fn act(&self, time: u64) {
        if time > 0 {
            return;
        }
        let other = manifest(&self.store, test_env(8));
        for _ in 0..10 {
            let role = if self.take_over { Role::Slicer } else { Role::Gc };
            other.take_epoch(role).await.unwrap();
        }
        let last = other.latest().await.unwrap().version - 2;
        raise_boundary(&*self.store.objects, &test_env(9), other.paths(), last).await.unwrap();
        for n in 1..=last {
            self.store.objects.delete(&other.paths().manifest(n)).await.unwrap();
        }
    }
}

async fn stalled_slicer(take_over: bool) -> (Store, Result<Committed, CommitError>) {
    let store = Store::memory();
    let stalled = {
        let first = manifest(&store, test_env(1));
        first.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
        first.take_epoch(Role::Slicer).await.unwrap();
        stalling(&store, 1, Collect { store: store.clone(), take_over })
    };
    let outcome = stalled.commit(&slice_with_layer(1, 10, 100, 200)).await;
    (store, outcome)
}

#[tokio::test]
async fn a_stalled_writer_that_wakes_below_the_boundary_has_committed_nothing() {
    let (store, outcome) = stalled_slicer(true).await;
    assert!(matches!(outcome, Err(CommitError::Fenced(_))), "{outcome:?}");
    let paths = paths(&store);
    assert!(store.objects.head(&paths.manifest(3)).await.is_ok(), "it did create the collected number again");
    for hint in ["3", "2", "12", "1"] {
        zenith_store::put_hint(&*store.objects, &paths.manifest_hint(), hint.into()).await.unwrap();
        let newest = manifest(&store, test_env(20)).latest().await.unwrap();
        assert_eq!((newest.version, newest.recent.len()), (12, 0), "hint {hint}");
    }
}

#[tokio::test]
async fn a_stalled_writer_that_still_holds_its_role_commits_above_the_boundary() {
    let (store, outcome) = stalled_slicer(false).await;
    assert_eq!(outcome.unwrap().root.version, 13);
    assert_eq!(manifest(&store, test_env(20)).latest().await.unwrap().recent.len(), 1);
}

#[tokio::test]
async fn the_boundary_only_rises() {
    let (store, _directory) = folder_store();
    let paths = paths(&store);
    for (raise, expected) in [(5, 5), (3, 5), (5, 5), (9, 9)] {
        raise_boundary(&*store.objects, &test_env(1), &paths, raise).await.unwrap();
        assert_eq!(manifest(&store, test_env(2)).void_up_to().await.unwrap(), expected);
    }
    let kept = zenith_store::list(&*store.objects, &store.prefix, 10).await.unwrap();
    assert_eq!(kept.len(), 2, "nothing was written where nothing was to be raised");
}

#[tokio::test]
async fn three_hundred_commits_cost_the_same_from_first_to_last() {
    let store = Store::memory();
    let counting = Arc::new(CountingStore::new(Arc::clone(&store.objects)));
    let counts = counting.counts();
    let manifest = manifest_on(counting, &store, test_env(1));
    manifest.commit(&register(&base(1, 1, 100, 120))).await.unwrap();
    let (epoch, _) = manifest.take_epoch(Role::Slicer).await.unwrap();
    let mut plain = 0;
    for n in 0..300 {
        let before = counts.snapshot();
        manifest.commit(&slice_with_layer(epoch, 10 + n, 100 + n, 101 + n)).await.unwrap();
        let cost = counts.snapshot().since(&before);
        assert!(cost.requests() <= 4, "commit {n}: {cost:?}");
        assert_eq!((cost.lists, cost.deletes), (0, 0), "commit {n}");
        assert!(cost.bytes_put < 64 << 10, "commit {n}: {cost:?}");
        plain += u32::from(cost.requests() == 3);
    }
    assert_eq!(plain, 298, "version, boundary, hint; twice an index page besides");
}
