//! Who may touch the blocks of a file that is being filled.
//!
//! The filler must not write over a page that the server has written meanwhile, nor extend a file that was truncated, and nobody may
//! read a page that is half written. So the blocks of forks that have pages to be fetched are divided among some locks: who reads or
//! writes one holds its lock shared, the filler holds those of its batch until it is retired from the journal. Who truncates or
//! removes a file first lowers its limit, and then waits for the batch that may have looked at the limit before.

use pgrx::pg_sys;
use std::sync::OnceLock;
use zenith_pgformat::{Fork, RelNode};

const TRANCHE: &std::ffi::CStr = c"zenith_fill";
/// Locks of blocks; one more is that of the batch.
const PARTS: usize = 64;
/// Blocks that follow one another and share a lock.
const BLOCKS: u32 = 128;

/// The hook that was there before.
static mut BEFORE: pg_sys::shmem_request_hook_type = None;
/// Where they lie: in every process at the same place.
static FIRST: OnceLock<usize> = OnceLock::new();

/// Asks for the locks, while libraries are loaded.
pub(crate) fn request() {
    // SAFETY: the postmaster has one thread.
    unsafe {
        BEFORE = pg_sys::shmem_request_hook;
        pg_sys::shmem_request_hook = Some(requested);
    }
}

unsafe extern "C-unwind" fn requested() {
    // SAFETY: PostgreSQL calls this when shared memory may be asked for, in one thread.
    unsafe {
        if let Some(before) = BEFORE {
            before();
        }
        pg_sys::RequestNamedLWLockTranche(TRANCHE.as_ptr(), PARTS as i32 + 1);
    }
}

/// One of the locks.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lock(usize);

impl Lock {
    /// That of a batch.
    pub(crate) const BATCH: Lock = Lock(PARTS);

    /// That of a block.
    pub(crate) fn of(node: RelNode, fork: Fork, block: u32) -> Lock {
        let numbers = [node.spc, node.db, node.rel, fork as u32, block / BLOCKS];
        let mixed = numbers.into_iter().fold(0u64, |mixed, number| {
            (mixed ^ u64::from(number)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
        });
        Lock((mixed % PARTS as u64) as usize)
    }

    /// Held until it is released, or by PostgreSQL's own clean-up after an error.
    pub(crate) fn shared(self) {
        // SAFETY: see `place`.
        unsafe { pg_sys::LWLockAcquire(self.place(), pg_sys::LWLockMode::LW_SHARED) };
    }

    /// As [`Lock::shared`], by nobody else.
    pub(crate) fn exclusive(self) {
        // SAFETY: see `place`.
        unsafe { pg_sys::LWLockAcquire(self.place(), pg_sys::LWLockMode::LW_EXCLUSIVE) };
    }

    /// One that this process holds.
    pub(crate) fn release(self) {
        // SAFETY: see `place`.
        unsafe { pg_sys::LWLockRelease(self.place()) }
    }

    fn place(self) -> *mut pg_sys::LWLock {
        // SAFETY: the tranche was asked for with as many locks, by the postmaster that this process comes from.
        unsafe {
            let first = FIRST.get_or_init(|| pg_sys::GetNamedLWLockTranche(TRANCHE.as_ptr()) as usize);
            &raw mut (*(*first as *mut pg_sys::LWLockPadded).add(self.0)).lock
        }
    }
}
