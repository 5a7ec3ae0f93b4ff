//! The pool of redo processes.

use crate::batch::{Batch, Job, Outcome, Placed, longest_change, outcome};
use crate::native::Edit;
use crate::process::{Exchange, Process, Recipe};
use crate::request::{Change, ChangeBody, PageRequest, RedoError};
use crate::selftest;
use crate::shm::LONG_SPIN;
use crate::start::{RedoOptions, StartError};
use crate::workdir::{Owner, WorkDir};
use crate::{locate, page};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use zenith_pgformat::Page;

/// The outcome of one request.
pub type PageResult = Result<Box<Page>, RedoError>;

/// A region smaller than this could not take every record.
const MIN_REGION: usize = 1 << 20;
/// Fewer requests than this are not worth another process.
const MIN_CHUNK: usize = 8;
/// So few pages, with records of so many bytes at most, take tens of microseconds, as handing them to another thread does.
const SMALL_PAGES: usize = 8;
const SMALL_BYTES: usize = 64 << 10;
/// How long a caller's thread sleeps for such pages; then another one waits for them.
const PATIENCE: Duration = Duration::from_micros(500);
/// How often in a row a process may die before it has begun its batch.
const MAX_STILLBORN: u32 = 3;

/// A pool of redo processes. Cheap to clone; the processes end with the last clone, or with this process.
#[derive(Clone)]
pub struct RedoPool {
    shared: Arc<Shared>,
}

struct Shared {
    idle: Mutex<Idle>,
    returned: Condvar,
    keeper: Keeper,
    recipe: Arc<Recipe>,
    workers: usize,
    /// As many as processes, so that asynchronous callers wait without occupying a thread each.
    permits: Arc<Semaphore>,
}

struct Idle {
    processes: Vec<Process>,
    /// How many more may be started.
    unstarted: usize,
}

impl RedoPool {
    /// Checks that redo works here: finds server and library, starts one process and runs its self test. The others
    /// start when there is work for them. Blocks for up to a few seconds the first time (`initdb`).
    pub fn start(options: &RedoOptions) -> Result<RedoPool, StartError> {
        let recipe = Arc::new(recipe(options)?);
        let cores = || std::thread::available_parallelism().map_or(1, usize::from);
        let workers = options.workers.unwrap_or_else(cores).max(1);
        let keeper = Keeper::start()?;
        let first = keeper.process(&recipe)?;
        let idle = Mutex::new(Idle { processes: vec![first], unstarted: workers - 1 });
        let permits = Arc::new(Semaphore::new(workers));
        let shared = Shared { idle, returned: Condvar::new(), keeper, recipe, workers, permits };
        Ok(RedoPool { shared: Arc::new(shared) })
    }

    /// Builds pages, in the order of the requests; a large batch is spread over the processes. A few pages are waited for on
    /// the caller's thread, for at most [`PATIENCE`].
    pub async fn redo(&self, requests: Vec<PageRequest>) -> Vec<PageResult> {
        let names: Vec<_> = requests.iter().map(PageRequest::name).collect();
        let chunk = requests.len().div_ceil(self.shared.workers).max(MIN_CHUNK);
        let mut tasks = Vec::new();
        let mut requests = requests;
        if is_small(&requests)
            && let Some((permit, slot)) = self.idle_slot()
        {
            let mut work = self.prepare(requests);
            let placed = match self.try_at_once(&mut work, slot) {
                Ok(()) => return work.results(),
                Err(waiting) => waiting,
            };
            let pool = self.clone();
            tasks.push(tokio::task::spawn_blocking(move || {
                let Asked { mut slot, placed } = placed;
                pool.work(&mut work, &mut slot, Some(placed));
                drop((slot, permit));
                work.results()
            }));
            requests = Vec::new();
        }
        let mut requests = requests.into_iter();
        loop {
            let part: Vec<PageRequest> = requests.by_ref().take(chunk).collect();
            if part.is_empty() {
                break;
            }
            // Never closed, so that there is always a permit in the end.
            let permit = Arc::clone(&self.shared.permits).acquire_owned().await;
            let pool = self.clone();
            tasks.push(tokio::task::spawn_blocking(move || {
                let pages = pool.redo_blocking(part);
                drop(permit);
                pages
            }));
        }
        let mut results = Vec::with_capacity(names.len());
        for (task, names) in tasks.into_iter().zip(names.chunks(chunk)) {
            match task.await {
                Ok(pages) => results.extend(pages),
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                Err(_) => results.extend(names.iter().map(|key| Err(RedoError::ShuttingDown { key: *key }))),
            }
        }
        results
    }

    /// The same for callers without a runtime: blocks the thread, and uses one process.
    pub fn redo_blocking(&self, requests: Vec<PageRequest>) -> Vec<PageResult> {
        let mut work = self.prepare(requests);
        self.work(&mut work, &mut Slot::new(&self.shared), None);
        work.results()
    }

    /// The ids of the processes that are idle now, for tests and for people who watch them.
    pub fn idle_process_ids(&self) -> Vec<u32> {
        self.shared.lock().processes.iter().map(Process::id).collect()
    }

    /// A process that can be had without waiting.
    fn idle_slot(&self) -> Option<(OwnedSemaphorePermit, Slot)> {
        let permit = Arc::clone(&self.shared.permits).try_acquire_owned().ok()?;
        let process = self.shared.lock().processes.pop()?;
        Some((permit, Slot { shared: Arc::clone(&self.shared), process: Some(process) }))
    }

    /// Checks requests, and answers those at once of which no record has to be redone.
    fn prepare(&self, requests: Vec<PageRequest>) -> Work {
        let limit = longest_change(self.shared.recipe.region_size);
        let mut work = Work {
            jobs: VecDeque::with_capacity(requests.len()),
            results: Vec::with_capacity(requests.len()),
        };
        for (index, request) in requests.into_iter().enumerate() {
            work.results.push(match prepare(index, request, limit) {
                Prepared::Job(job) => {
                    work.jobs.push_back(job);
                    None
                }
                Prepared::Finished(result) => Some(result),
            });
        }
        work
    }

    /// Sends jobs to a process and takes the results, if it has them within a moment; otherwise somebody else has to wait
    /// for it.
    fn try_at_once(&self, work: &mut Work, mut slot: Slot) -> Result<(), Asked> {
        let Some(process) = slot.process.as_mut().filter(|_| !work.jobs.is_empty()) else { return Ok(()) };
        let placed = lay_out(process, &mut work.jobs);
        process.ask();
        if !work.jobs.is_empty() || !process.is_answered_soon(LONG_SPIN, PATIENCE) {
            return Err(Asked { slot, placed });
        }
        let rest = self.collect(process, placed, &Exchange::Answered, None, &mut work.results);
        work.jobs.extend(rest);
        match work.jobs.is_empty() {
            true => Ok(()),
            false => {
                let placed = lay_out(process, &mut work.jobs);
                process.ask();
                Err(Asked { slot, placed })
            }
        }
    }

    /// Sends jobs to one process until all have a result. `asked`: those that the slot's process has been asked for.
    fn work(&self, work: &mut Work, slot: &mut Slot, mut asked: Option<Vec<Placed>>) {
        let Work { jobs, results } = work;
        let mut stillborn = 0;
        while asked.is_some() || !jobs.is_empty() {
            let process = match slot.process() {
                Ok(process) => process,
                Err(error) => {
                    let source = Arc::new(error);
                    for job in jobs {
                        let error = RedoError::Unavailable { key: job.name(), source: Arc::clone(&source) };
                        set(results, job.index, Err(error));
                    }
                    return;
                }
            };
            let placed = asked.take().unwrap_or_else(|| {
                let placed = lay_out(process, jobs);
                process.ask();
                placed
            });
            let exchange = process.wait(self.shared.recipe.timeout);
            let current = process.region.header().item.load(Ordering::Acquire) as usize;
            stillborn =
                if matches!(exchange, Exchange::Died { taken: false, .. }) { stillborn + 1 } else { 0 };
            let blamed = (stillborn == 0 || stillborn >= MAX_STILLBORN).then_some(current);
            let mut rest = self.collect(process, placed, &exchange, blamed, results);
            if exchange != Exchange::Answered {
                slot.discard();
            }
            while let Some(job) = rest.pop() {
                jobs.push_front(job);
            }
        }
    }

    /// Takes the results out of a batch; what is not finished comes back.
    fn collect(
        &self,
        process: &Process,
        placed: Vec<Placed>,
        exchange: &Exchange,
        blamed: Option<usize>,
        results: &mut [Option<PageResult>],
    ) -> Vec<Job> {
        let mut rest = Vec::new();
        for (position, mut item) in placed.into_iter().enumerate() {
            match outcome(&process.region, &item) {
                Outcome::Done(page) if item.until == item.job.request.changes.len() => {
                    set(results, item.job.index, Ok(page));
                }
                Outcome::Done(page) => {
                    item.job.page = Some(page);
                    item.job.next = item.until;
                    rest.push(item.job);
                }
                Outcome::Failed(error) => set(results, item.job.index, Err(error)),
                Outcome::Unfinished if blamed == Some(position) || *exchange == Exchange::Answered => {
                    let change = process.region.header().change.load(Ordering::Acquire) as usize;
                    let lsn = item.job.lsn(item.job.next.saturating_add(change));
                    let key = item.job.name();
                    let error = match exchange {
                        Exchange::TimedOut => {
                            RedoError::TimedOut { key, lsn, limit: self.shared.recipe.timeout }
                        }
                        Exchange::Died { how, .. } => RedoError::Crashed { key, lsn, message: how.clone() },
                        Exchange::Answered => {
                            let message = "it answered without an outcome".to_owned();
                            RedoError::Crashed { key, lsn, message }
                        }
                    };
                    set(results, item.job.index, Err(error));
                }
                Outcome::Unfinished => rest.push(item.job),
            }
        }
        rest
    }
}

/// Finds everything that processes are started from.
pub(crate) fn recipe(options: &RedoOptions) -> Result<Recipe, StartError> {
    Ok(Recipe {
        server: locate::server(options.bin_dir.as_deref())?,
        library: locate::library(options.library.as_deref())?,
        work_dir: WorkDir::open(options, Owner::find(&options.owner)?)?,
        region_size: options.region_size.max(MIN_REGION),
        timeout: options.timeout,
    })
}

fn set(results: &mut [Option<PageResult>], index: usize, result: PageResult) {
    if let Some(place) = results.get_mut(index) {
        *place = Some(result);
    }
}

/// Moves as many jobs as fit into a process's region.
fn lay_out(process: &mut Process, jobs: &mut VecDeque<Job>) -> Vec<Placed> {
    let header = process.region.header_mut();
    header.items = 0;
    header.item.store(0, Ordering::Relaxed);
    header.change.store(0, Ordering::Relaxed);
    let mut batch = Batch::new(&mut process.region);
    while let Some(job) = jobs.pop_front() {
        if let Err(job) = batch.add(job) {
            jobs.push_front(job);
            break;
        }
    }
    batch.placed
}

enum Prepared {
    Job(Job),
    Finished(PageResult),
}

/// Checks a request, and answers it at once if no record has to be redone.
fn prepare(index: usize, request: PageRequest, limit: usize) -> Prepared {
    let key = request.name();
    let too_long = request.changes.iter().find(|change| change.bytes().len() > limit);
    if let Some(change) = too_long {
        let (lsn, length) = (change.end, change.bytes().len());
        return Prepared::Finished(Err(RedoError::RecordTooLong { key, lsn, length, limit }));
    }
    let job = match Job::new(index, request) {
        Ok(job) => job,
        Err(error) => return Prepared::Finished(Err(error)),
    };
    let is_edit = |change: &Change| matches!(change.body, ChangeBody::Edit(_));
    if job.request.changes.iter().all(is_edit) { Prepared::Finished(edit(job)) } else { Prepared::Job(job) }
}

/// A page that only edits change.
fn edit(mut job: Job) -> PageResult {
    let key = job.name();
    let mut page = job.take_page();
    for change in &job.request.changes {
        let lsn = change.end;
        let wrong = |message: String| RedoError::BadEdit { key, lsn, message };
        let edit = Edit::decode(change.bytes()).map_err(|error| wrong(error.to_string()))?;
        edit.apply(&mut page, lsn).map_err(|error| match error {
            crate::native::EditError::LostBase(_) => RedoError::LostBase { key, lsn },
            other => wrong(other.to_string()),
        })?;
    }
    Ok(page)
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a process, or for the right to start one.
    fn acquire(&self) -> Result<Process, StartError> {
        let mut idle = self.lock();
        loop {
            if let Some(process) = idle.processes.pop() {
                return Ok(process);
            }
            if idle.unstarted > 0 {
                idle.unstarted -= 1;
                drop(idle);
                return self.keeper.process(&self.recipe).inspect_err(|_| self.give_up());
            }
            idle = self.returned.wait(idle).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn release(&self, process: Process) {
        self.lock().processes.push(process);
        self.returned.notify_one();
    }

    /// A process is gone: another may be started.
    fn give_up(&self) {
        self.lock().unstarted += 1;
        self.returned.notify_one();
    }
}

/// Requests on their way.
struct Work {
    /// What has not been sent to a process.
    jobs: VecDeque<Job>,
    /// By the requests' order.
    results: Vec<Option<PageResult>>,
}

impl Work {
    fn results(self) -> Vec<PageResult> {
        // Every job sets its result; leaving out only keeps this free of panics.
        self.results.into_iter().flatten().collect()
    }
}

/// A process that has been asked, and what for.
struct Asked {
    slot: Slot,
    placed: Vec<Placed>,
}

/// Whether waiting for these pages is worth less than handing them to another thread.
fn is_small(requests: &[PageRequest]) -> bool {
    let bytes =
        |request: &PageRequest| request.changes.iter().map(|change| change.bytes().len()).sum::<usize>();
    requests.len() <= SMALL_PAGES && requests.iter().map(bytes).sum::<usize>() <= SMALL_BYTES
}

/// The process that a caller works with; it goes back to the pool when the caller is done.
struct Slot {
    shared: Arc<Shared>,
    process: Option<Process>,
}

impl Slot {
    /// Without a process yet.
    fn new(shared: &Arc<Shared>) -> Slot {
        Slot { shared: Arc::clone(shared), process: None }
    }

    fn process(&mut self) -> Result<&mut Process, StartError> {
        if self.process.is_none() {
            self.process = Some(self.shared.acquire()?);
        }
        self.process.as_mut().ok_or(StartError::NotReady { how: "none".to_owned(), message: String::new() })
    }

    fn discard(&mut self) {
        if self.process.take().is_some() {
            self.shared.give_up();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        match self.process.take() {
            Some(process) if process.is_idle() => self.shared.release(process),
            // Whoever was to wait for it never did: what it still writes must meet no other batch.
            Some(_) => self.shared.give_up(),
            None => {}
        }
    }
}

type Task = Box<dyn FnOnce() + Send>;

/// A thread that starts all processes of a pool. The kernel ties a child to the *thread* that forked it, and threads of a
/// runtime come and go.
struct Keeper {
    tasks: Mutex<mpsc::Sender<Task>>,
}

impl Keeper {
    fn start() -> Result<Keeper, StartError> {
        let (tasks, inbox) = mpsc::channel::<Task>();
        let run = move || {
            while let Ok(task) = inbox.recv() {
                task();
            }
        };
        let thread = std::thread::Builder::new().name("zenith-redo-keeper".to_owned()).spawn(run);
        let what = "start a thread".to_owned();
        thread.map_err(|source| StartError::Io { what, source })?;
        Ok(Keeper { tasks: Mutex::new(tasks) })
    }

    /// Starts a process that has passed its self test.
    fn process(&self, recipe: &Arc<Recipe>) -> Result<Process, StartError> {
        let (answer, outcome) = mpsc::channel();
        let recipe = Arc::clone(recipe);
        let task = Box::new(move || {
            let process = Process::start(&recipe);
            let process = process.and_then(|process| selftest::check(process, recipe.timeout));
            // A caller that is gone drops the process with its end of the channel.
            drop(answer.send(process));
        });
        let gone = || StartError::NotReady { how: "its keeper ended".to_owned(), message: String::new() };
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).send(task).map_err(|_| gone())?;
        outcome.recv().map_err(|_| gone())?
    }
}

/// Runs the jobs of a self test in one process.
pub(crate) fn run_alone(process: &mut Process, job: Job, timeout: Duration) -> Result<Box<Page>, String> {
    let mut jobs = VecDeque::from([job]);
    let placed = lay_out(process, &mut jobs);
    let exchange = process.exchange(timeout);
    let Some(item) = placed.first() else { return Err("its records do not fit the region".to_owned()) };
    match (exchange, outcome(&process.region, item)) {
        (_, Outcome::Done(page)) if page::is_new(&page) => Err("it left a page of zeros".to_owned()),
        (_, Outcome::Done(page)) => Ok(page),
        (_, Outcome::Failed(error)) => Err(error.to_string()),
        (Exchange::Died { how, .. }, _) => Err(format!("the process ended: {how}")),
        (_, Outcome::Unfinished) => Err("the process did not finish".to_owned()),
    }
}
