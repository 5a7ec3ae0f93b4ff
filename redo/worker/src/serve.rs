//! From a half-started server to a process that answers batches.

use crate::redo::Redo;
use crate::refuse;
use pgrx_pg_sys as pg;
use std::os::fd::BorrowedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use zenith_redo::sandbox;
use zenith_redo::shm::{self, ARENA, LAYOUT, MAGIC, READY, REGION_FD, Region};

/// PostgreSQL calls this at the end of `CreateSharedMemoryAndSemaphores`. Never returns.
pub(crate) unsafe extern "C-unwind" fn shared_memory_is_ready() {
    let region = region();
    // SAFETY: single-threaded, in the state described above.
    let mut redo = match unsafe { prepare() } {
        Ok(redo) => redo,
        Err(reason) => refuse(&reason),
    };
    if let Err(reason) = sandbox::enter() {
        refuse(&reason);
    }
    let header = region.header();
    header.state.store(READY, Ordering::SeqCst);
    shm::futex_wake(&header.state);
    let (mut turn, mut patience) = (0, Patience { spins: shm::SHORT_SPIN });
    loop {
        turn = patience.next_turn(&region, turn);
        region.header().taken.store(turn, Ordering::Release);
        answer(&region, &mut redo);
        let header = region.header();
        header.answered.store(turn, Ordering::SeqCst);
        if header.caller_sleeps.load(Ordering::SeqCst) != 0 {
            shm::futex_wake(&header.answered);
        }
    }
}

/// The region that the caller passed on.
fn region() -> Region {
    // SAFETY: the caller passes the region under this number; `fstat` says whether there is one.
    let (fd, size) = unsafe {
        let mut status = std::mem::zeroed::<libc::stat>();
        if libc::fstat(REGION_FD, &raw mut status) != 0 {
            refuse("started without a shared region: only Zenith can start it");
        }
        (BorrowedFd::borrow_raw(REGION_FD), usize::try_from(status.st_size).unwrap_or(0))
    };
    let region = match Region::map(fd, size) {
        Ok(region) => region,
        Err(error) => refuse(&format!("cannot map the shared region: {error}")),
    };
    let header = region.header();
    if header.magic != MAGIC || header.layout != LAYOUT {
        refuse("library and program are not from the same build of Zenith: install them together");
    }
    region
}

/// What a startup process has before it redoes its first record, and the freedom from what it would leave behind.
unsafe fn prepare() -> Result<Redo, String> {
    // SAFETY: the calls that follow in `PostgresSingleUserMain`, `PostgresMain` and `InitPostgres`, up to `StartupXLOG`.
    unsafe {
        remove_shared_memory_segment();
        default_signals();
        std::panic::set_hook(Box::new(|_| {}));
        crate::redo::guarded(|| {
            pg::InitProcess();
            pg::BaseInit();
            pg::CreateAuxProcessResourceOwner();
            pg::RmgrStartup();
        })?;
        pg::InRecovery = true;
        Redo::new()
    }
}

/// The small System V segment by which servers notice each other outlives a process that is killed, unless it is removed
/// while it is in use.
unsafe fn remove_shared_memory_segment() {
    unsafe extern "C" {
        /// sysv_shmem.c: the key
        static UsedShmemSegID: libc::c_ulong;
    }
    // SAFETY: plain system calls. Failure leaves 56 bytes behind, nothing else.
    unsafe {
        if let Ok(key) = libc::key_t::try_from(UsedShmemSegID as i64) {
            let id = libc::shmget(key, 0, 0);
            if id >= 0 {
                libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut());
            }
        }
    }
}

/// PostgreSQL's handlers ask for an orderly end, which never comes.
unsafe fn default_signals() {
    // SAFETY: plain system calls.
    unsafe {
        for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, libc::SIGHUP, libc::SIGALRM, libc::SIGUSR1]
        {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// How long the process looks for the next batch before it sleeps: longer where the last one came soon, so that batches that
/// follow closely find it awake, and a busy machine does not pay for one that is asked rarely.
struct Patience {
    spins: u32,
}

/// Batches that follow within this time are worth looking for: to sleep and to be woken takes as long.
const SOON: Duration = Duration::from_micros(100);

impl Patience {
    /// Waits for the caller's next batch.
    #[allow(clippy::disallowed_methods, reason = "how long it waited decides nothing but how it waits")]
    fn next_turn(&mut self, region: &Region, turn: u32) -> u32 {
        let header = region.header();
        let begun = Instant::now();
        if !shm::spin_until_changed(&header.asked, turn, self.spins) {
            header.worker_sleeps.store(1, Ordering::SeqCst);
            while header.asked.load(Ordering::SeqCst) == turn {
                shm::futex_wait(&header.asked, turn, None);
            }
            header.worker_sleeps.store(0, Ordering::SeqCst);
        }
        self.spins = if begun.elapsed() < SOON { shm::LONG_SPIN } else { shm::SHORT_SPIN };
        header.asked.load(Ordering::Acquire)
    }
}

/// Works through one batch.
fn answer(region: &Region, redo: &mut Redo) {
    let items = region.header().items;
    let mut offset = ARENA;
    for index in 0..items {
        let Some(item) = region.item(offset) else { refuse("the batch is longer than its region") };
        region.header().change.store(0, Ordering::Relaxed);
        region.header().item.store(index, Ordering::Release);
        // SAFETY: inside of the region, aligned, and ours until the batch is answered.
        let length = unsafe { item.as_ref().head.length } as usize;
        if length < size_of::<shm::Item>() || region.at(offset, length).is_none() {
            refuse("an item is longer than its region");
        }
        // SAFETY: as above; `length` bytes belong to the item.
        unsafe { redo.item(item, length, &region.header().change) };
        offset += length;
    }
}
