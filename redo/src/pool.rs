//! The pool of redo processes.

use crate::batch::{Batch, Job, Outcome, Placed, longest_change, outcome};
use crate::native::Edit;
use crate::process::{Exchange, Process, Recipe};
use crate::request::{Change, ChangeBody, PageRequest, RedoError};
use crate::selftest;
use crate::start::{RedoOptions, StartError};
use crate::workdir::{Owner, WorkDir};
use crate::{locate, page};
use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::Semaphore;
use zenith_pgformat::Page;

/// The outcome of one request.
pub type PageResult = Result<Box<Page>, RedoError>;

/// A region smaller than this could not take every record.
const MIN_REGION: usize = 1 << 20;
/// Fewer requests than this are not worth another process.
const MIN_CHUNK: usize = 8;
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

    /// Builds pages, in the order of the requests; a large batch is spread over the processes.
    pub async fn redo(&self, requests: Vec<PageRequest>) -> Vec<PageResult> {
        let names: Vec<_> = requests.iter().map(PageRequest::name).collect();
        let chunk = requests.len().div_ceil(self.shared.workers).max(MIN_CHUNK);
        let mut tasks = Vec::new();
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
        let mut results: Vec<Option<PageResult>> = Vec::new();
        results.resize_with(requests.len(), || None);
        let limit = longest_change(self.shared.recipe.region_size);
        let mut jobs = VecDeque::new();
        for (index, request) in requests.into_iter().enumerate() {
            match prepare(index, request, limit) {
                Prepared::Job(job) => jobs.push_back(job),
                Prepared::Finished(result) => set(&mut results, index, result),
            }
        }
        if !jobs.is_empty() {
            self.work(jobs, &mut results);
        }
        // Every job sets its result; the fallback only keeps this free of panics.
        results.into_iter().flatten().collect()
    }

    /// The ids of the processes that are idle now, for tests and for people who watch them.
    pub fn idle_process_ids(&self) -> Vec<u32> {
        self.shared.lock().processes.iter().map(Process::id).collect()
    }

    /// Sends jobs to one process until all have a result.
    fn work(&self, mut jobs: VecDeque<Job>, results: &mut [Option<PageResult>]) {
        let mut slot = Slot { shared: &self.shared, process: None };
        let mut stillborn = 0;
        while !jobs.is_empty() {
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
            let placed = lay_out(process, &mut jobs);
            let exchange = process.exchange(self.shared.recipe.timeout);
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
                    item.job.page = page;
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
    for change in &job.request.changes {
        let lsn = change.end;
        let wrong = |message: String| RedoError::BadEdit { key, lsn, message };
        let edit = Edit::decode(change.bytes()).map_err(|error| wrong(error.to_string()))?;
        edit.apply(&mut job.page, lsn).map_err(|error| match error {
            crate::native::EditError::LostBase(_) => RedoError::LostBase { key, lsn },
            other => wrong(other.to_string()),
        })?;
    }
    Ok(job.page)
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

/// The process that a caller works with; it goes back to the pool when the caller is done.
struct Slot<'a> {
    shared: &'a Shared,
    process: Option<Process>,
}

impl Slot<'_> {
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

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        if let Some(process) = self.process.take() {
            self.shared.release(process);
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
pub(crate) fn run_alone(
    process: &mut Process,
    job: Job,
    timeout: std::time::Duration,
) -> Result<Box<Page>, String> {
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
