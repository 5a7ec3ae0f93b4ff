//! A store that fails as told: what, how often and where is a script, or drawn from a seed. The same script and
//! the same order of requests fail in the same way.

use crate::env::mix;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use object_store::client::{HttpError, HttpErrorKind};
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, GetResultPayload, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result,
};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use zenith_store::Clock;

/// What goes wrong with a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It takes this long on the store's clock, and then succeeds.
    Latency(Duration),
    /// 503, with nothing done.
    Unavailable,
    /// The connection breaks before anything is done; the caller cannot know that.
    Reset,
    /// No answer, with nothing done; the caller cannot know that.
    TimedOut,
    /// 412, with nothing done.
    Precondition,
    /// 409 as `object_store` tells it for a put-if-absent: "already exists", with nothing done.
    Conflict,
    /// 403.
    Denied,
    /// The body of a read ends halfway; for anything else like [`Fault::Reset`].
    Truncated,
    /// It is done, but the answer is lost. A read is just lost.
    AppliedButLost,
    /// It is done, but the answer is lost and the repetition by the store's client finds it there.
    AppliedButExists,
}

/// Every fault after which a caller cannot know whether a put was done, or is told something else than what is so.
pub const AMBIGUOUS: [Fault; 7] = [
    Fault::Unavailable,
    Fault::Reset,
    Fault::TimedOut,
    Fault::Precondition,
    Fault::Conflict,
    Fault::AppliedButLost,
    Fault::AppliedButExists,
];

/// A kind of request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    /// Writes an object.
    Put,
    /// Reads an object or a part of it.
    Get,
    /// Asks for its size.
    Head,
    /// Lists.
    List,
    /// Deletes.
    Delete,
    /// Copies, renames, uploads in parts.
    Other,
}

/// When a fault happens. The first rule that matches a request decides.
#[derive(Clone, Debug)]
pub struct Rule {
    fault: Fault,
    operation: Option<Operation>,
    path_contains: String,
    skip: u64,
    times: u64,
    percent: u64,
}

impl Rule {
    /// The fault happens at every request.
    pub fn new(fault: Fault) -> Rule {
        Rule { fault, operation: None, path_contains: String::new(), skip: 0, times: u64::MAX, percent: 100 }
    }

    /// Only at this kind of request.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Rule {
        self.operation = Some(operation);
        self
    }

    /// Only where the path contains this.
    #[must_use]
    pub fn at(mut self, path_contains: &str) -> Rule {
        path_contains.clone_into(&mut self.path_contains);
        self
    }

    /// Not at the first so many requests that match.
    #[must_use]
    pub fn after(mut self, skip: u64) -> Rule {
        self.skip = skip;
        self
    }

    /// At most so often.
    #[must_use]
    pub fn times(mut self, times: u64) -> Rule {
        self.times = times;
        self
    }

    /// At so many of a hundred requests that match, drawn from the store's seed.
    #[must_use]
    pub fn percent(mut self, percent: u64) -> Rule {
        self.percent = percent;
        self
    }
}

#[derive(Debug, Default)]
struct State {
    rules: Vec<Rule>,
    draws: u64,
    fired: Vec<(Operation, String, Fault)>,
}

/// What [`FaultStore`] will do and has done; shared with its store.
#[derive(Clone, Debug)]
pub struct Faults {
    seed: u64,
    state: Arc<Mutex<State>>,
}

impl Faults {
    /// Adds a rule, behind those that are there.
    pub fn add(&self, rule: Rule) {
        self.state().rules.push(rule);
    }

    /// From now on nothing fails.
    pub fn clear(&self) {
        self.state().rules.clear();
    }

    /// The faults that happened, in order. A test that injects faults checks that they did happen.
    pub fn fired(&self) -> Vec<(Operation, String, Fault)> {
        self.state().fired.clone()
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, operation: Operation, path: &str) -> Option<Fault> {
        let mut state = self.state();
        let state = &mut *state;
        for rule in &mut state.rules {
            let matches = rule.times > 0
                && rule.operation.is_none_or(|only| only == operation)
                && path.contains(&rule.path_contains);
            if !matches {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            state.draws += 1;
            if mix(self.seed ^ mix(state.draws)) % 100 >= rule.percent {
                continue;
            }
            rule.times = rule.times.saturating_sub(1);
            state.fired.push((operation, path.to_owned(), rule.fault));
            return Some(rule.fault);
        }
        None
    }
}

/// See the module.
pub struct FaultStore {
    inner: Arc<dyn ObjectStore>,
    clock: Arc<dyn Clock>,
    faults: Faults,
}

impl FaultStore {
    /// Passes everything on to `inner` until [`Faults::add`] says otherwise.
    pub fn new(inner: Arc<dyn ObjectStore>, clock: Arc<dyn Clock>, seed: u64) -> FaultStore {
        FaultStore { inner, clock, faults: Faults { seed, state: Arc::default() } }
    }

    /// Its script.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    /// What happens to a request before it reaches the store: `Ok(true)` if it is to be done and its answer lost.
    async fn before(&self, operation: Operation, location: &Path) -> Result<Option<Fault>> {
        let fault = self.faults.next(operation, location.as_ref());
        match fault {
            Some(Fault::Latency(pause)) => {
                self.clock.sleep(pause).await;
                Ok(None)
            }
            Some(fault @ (Fault::AppliedButLost | Fault::AppliedButExists | Fault::Truncated)) => {
                Ok(Some(fault))
            }
            Some(fault) => Err(failure(fault, location)),
            None => Ok(None),
        }
    }
}

fn failure(fault: Fault, location: &Path) -> Error {
    let source = |what: &'static str| Box::new(std::io::Error::other(what));
    let lost = |kind: HttpErrorKind, what: &'static str| Error::Generic {
        store: "fault",
        source: Box::new(HttpError::new(kind, std::io::Error::other(what))),
    };
    let path = location.to_string();
    match fault {
        Fault::Unavailable | Fault::Latency(_) => {
            Error::Generic { store: "fault", source: source("injected: 503 Service Unavailable") }
        }
        Fault::Reset | Fault::Truncated | Fault::AppliedButLost => {
            lost(HttpErrorKind::Interrupted, "injected: connection reset")
        }
        Fault::TimedOut => lost(HttpErrorKind::Timeout, "injected: timed out"),
        Fault::Precondition => Error::Precondition { path, source: source("injected: 412") },
        Fault::Conflict | Fault::AppliedButExists => {
            Error::AlreadyExists { path, source: source("injected: 409") }
        }
        Fault::Denied => Error::PermissionDenied { path, source: source("injected: 403 AccessDenied") },
    }
}

impl fmt::Debug for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

impl fmt::Display for FaultStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "faulty {}", self.inner)
    }
}

#[async_trait]
#[deny(clippy::missing_trait_methods)]
impl ObjectStore for FaultStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let fault = self.before(Operation::Put, location).await?;
        let done = self.inner.put_opts(location, payload, opts).await?;
        fault.map_or(Ok(done), |fault| Err(failure(fault, location)))
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        opts: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        match self.before(Operation::Other, location).await? {
            Some(fault) => Err(failure(fault, location)),
            None => self.inner.put_multipart_opts(location, opts).await,
        }
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        let operation = if options.head { Operation::Head } else { Operation::Get };
        match self.before(operation, location).await? {
            Some(Fault::Truncated) if operation == Operation::Get => {
                cut_short(self.inner.get_opts(location, options).await?).await
            }
            Some(fault) => Err(failure(fault, location)),
            None => self.inner.get_opts(location, options).await,
        }
    }

    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> Result<Vec<Bytes>> {
        match self.before(Operation::Get, location).await? {
            Some(fault) => Err(failure(fault, location)),
            None => self.inner.get_ranges(location, ranges).await,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let (inner, faults) = (Arc::clone(&self.inner), self.faults.clone());
        let clock = Arc::clone(&self.clock);
        let deleted = locations.then(move |location| {
            let (inner, faults, clock) = (Arc::clone(&inner), faults.clone(), Arc::clone(&clock));
            async move {
                let location = location?;
                let fault = faults.next(Operation::Delete, location.as_ref());
                if let Some(Fault::Latency(pause)) = fault {
                    clock.sleep(pause).await;
                }
                let done = match fault {
                    None | Some(Fault::Latency(_) | Fault::AppliedButLost | Fault::AppliedButExists) => {
                        let one = futures::stream::iter([Ok(location.clone())]).boxed();
                        inner.delete_stream(one).next().await.unwrap_or(Ok(location.clone()))
                    }
                    Some(fault) => Err(failure(fault, &location)),
                };
                match fault {
                    Some(fault @ (Fault::AppliedButLost | Fault::AppliedButExists)) => {
                        Err(failure(fault, &location))
                    }
                    _ => done,
                }
            }
        });
        deleted.boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, below) = (Arc::clone(&self.inner), prefix.cloned());
        self.failing_list(prefix, move || inner.list(below.as_ref()))
    }

    fn list_with_offset(
        &self,
        prefix: Option<&Path>,
        offset: &Path,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, below, offset) = (Arc::clone(&self.inner), prefix.cloned(), offset.clone());
        self.failing_list(prefix, move || inner.list_with_offset(below.as_ref(), &offset))
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let root = Path::default();
        match self.before(Operation::List, prefix.unwrap_or(&root)).await? {
            Some(fault) => Err(failure(fault, prefix.unwrap_or(&root))),
            None => self.inner.list_with_delimiter(prefix).await,
        }
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        let fault = self.before(Operation::Other, to).await?;
        self.inner.copy_opts(from, to, options).await?;
        fault.map_or(Ok(()), |fault| Err(failure(fault, to)))
    }

    async fn rename_opts(&self, from: &Path, to: &Path, options: RenameOptions) -> Result<()> {
        let fault = self.before(Operation::Other, to).await?;
        self.inner.rename_opts(from, to, options).await?;
        fault.map_or(Ok(()), |fault| Err(failure(fault, to)))
    }
}

impl FaultStore {
    fn failing_list(
        &self,
        prefix: Option<&Path>,
        // What is listed is what is there when the request arrives.
        listing: impl FnOnce() -> BoxStream<'static, Result<ObjectMeta>> + Send + 'static,
    ) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = prefix.cloned().unwrap_or_default();
        let (faults, clock) = (self.faults.clone(), Arc::clone(&self.clock));
        let begun = async move {
            match faults.next(Operation::List, prefix.as_ref()) {
                Some(Fault::Latency(pause)) => {
                    clock.sleep(pause).await;
                    listing()
                }
                Some(fault) => futures::stream::iter([Err(failure(fault, &prefix))]).boxed(),
                None => listing(),
            }
        };
        begun.into_stream().flatten().boxed()
    }
}

/// The same answer with half its body.
async fn cut_short(answer: GetResult) -> Result<GetResult> {
    let (meta, range) = (answer.meta.clone(), answer.range.clone());
    let (attributes, extensions) = (answer.attributes.clone(), answer.extensions.clone());
    let bytes = answer.bytes().await?;
    let half = bytes.slice(..bytes.len() / 2);
    let payload = GetResultPayload::Stream(futures::stream::iter([Ok(half)]).boxed());
    Ok(GetResult { payload, meta, range, attributes, extensions })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::env::JumpingClock;
    use object_store::ObjectStoreExt;
    use zenith_store::{Creation, PutOutcome, Store, StoreError, create, get, put_if_absent};

    fn faulty(seed: u64) -> FaultStore {
        FaultStore::new(Store::memory().objects, Arc::new(JumpingClock::default()), seed)
    }

    fn path() -> Path {
        Path::from("a/object")
    }

    async fn outcome(fault: Fault) -> (Result<PutOutcome, StoreError>, bool) {
        let store = faulty(0);
        store.faults().add(Rule::new(fault).on(Operation::Put));
        let outcome = put_if_absent(&store, &path(), Bytes::from_static(b"x")).await;
        assert_eq!(store.faults().fired().len(), 1);
        (outcome, store.inner.head(&path()).await.is_ok())
    }

    #[tokio::test]
    async fn a_put_that_may_have_been_done_is_unknown_and_a_refused_one_is_an_error() {
        for fault in [Fault::Unavailable, Fault::Reset, Fault::TimedOut] {
            assert!(matches!(outcome(fault).await, (Ok(PutOutcome::Unknown(_)), false)), "{fault:?}");
        }
        assert!(matches!(outcome(Fault::AppliedButLost).await, (Ok(PutOutcome::Unknown(_)), true)));
        assert!(matches!(outcome(Fault::AppliedButExists).await, (Ok(PutOutcome::AlreadyExists), true)));
        assert!(matches!(outcome(Fault::Conflict).await, (Ok(PutOutcome::AlreadyExists), false)));
        assert!(matches!(outcome(Fault::Denied).await, (Err(StoreError::Denied { .. }), false)));
    }

    #[tokio::test]
    async fn create_settles_every_ambiguous_outcome_by_reading_back() {
        for fault in AMBIGUOUS {
            for times in 1..=3 {
                let store = faulty(0);
                store.faults().add(Rule::new(fault).on(Operation::Put).times(times));
                let env = crate::env::test_env(1);
                let made = create(&store, &env, &path(), Bytes::from_static(b"mine")).await.unwrap();
                assert!(matches!(made, Creation::Created | Creation::Same), "{fault:?} {times}: {made:?}");
                assert_eq!(get(&store, &path(), 9).await.unwrap(), "mine");
                let other = create(&store, &env, &path(), Bytes::from_static(b"other")).await.unwrap();
                assert_eq!(other, Creation::Other);
            }
        }
    }

    #[tokio::test]
    async fn what_stays_unknown_is_said_to_be_unknown() {
        let store = faulty(0);
        store.faults().add(Rule::new(Fault::TimedOut).on(Operation::Put));
        let made = create(&store, &crate::env::test_env(1), &path(), Bytes::new()).await;
        assert!(matches!(&made, Err(StoreError::Unknown { object, .. }) if object == "a/object"), "{made:?}");
    }

    #[tokio::test]
    async fn a_body_that_breaks_off_is_read_again_and_never_taken_for_whole() {
        let store = faulty(0);
        store.put(&path(), Bytes::from_static(b"0123456789").into()).await.unwrap();
        store.faults().add(Rule::new(Fault::Truncated).on(Operation::Get).times(2));
        assert_eq!(get(&store, &path(), 10).await.unwrap(), "0123456789");
        store.faults().add(Rule::new(Fault::Truncated).on(Operation::Get));
        let error = get(&store, &path(), 10).await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("5 of 10"), "{error}");
    }

    #[tokio::test]
    async fn the_same_seed_fails_at_the_same_requests() {
        let mut runs = Vec::new();
        for seed in [7, 7, 8] {
            let store = faulty(seed);
            store.faults().add(Rule::new(Fault::Reset).on(Operation::Head).percent(30));
            let mut failed = Vec::new();
            for n in 0..100 {
                let answer = store.head(&Path::from(format!("{n}"))).await;
                failed.push(matches!(answer, Err(Error::Generic { .. })));
            }
            assert!((10..50).contains(&failed.iter().filter(|failed| **failed).count()));
            runs.push(failed);
        }
        assert_eq!(runs[0], runs[1]);
        assert_ne!(runs[0], runs[2]);
    }

    #[tokio::test]
    async fn latency_passes_on_the_injected_clock_only() {
        let clock = Arc::new(JumpingClock::default());
        let store = FaultStore::new(Store::memory().objects, Arc::clone(&clock) as Arc<dyn Clock>, 0);
        store.faults().add(Rule::new(Fault::Latency(Duration::from_secs(3600))));
        store.put(&path(), Bytes::new().into()).await.unwrap();
        assert_eq!(clock.elapsed(), Duration::from_secs(3600));
    }
}
