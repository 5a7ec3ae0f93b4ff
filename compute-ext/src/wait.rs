//! Waiting as PostgreSQL's processes do: for as long as the postmaster lives, and until somebody cancels the query.

use pgrx::prelude::*;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

unsafe extern "C-unwind" {
    /// postmaster/startup.h
    fn HandleStartupProcInterrupts();
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum For {
    Reading,
    Writing,
}

/// Whether somebody woke this process while it waited here.
static TAKEN: AtomicBool = AtomicBool::new(false);

/// Wakes this process as often as it was woken while it waited here: that was meant for whatever it does otherwise.
pub(crate) fn give_wakes_back() {
    if TAKEN.swap(false, Ordering::Relaxed) {
        // SAFETY: a process that has waited has a latch.
        unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
    }
}

/// The time since which something lasts.
#[allow(clippy::disallowed_methods, reason = "a process of PostgreSQL, which goes by the system's clock")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// Waits until a socket is ready, at most so long. Raises an error when the query is cancelled or the server stops.
pub(crate) fn socket(socket: BorrowedFd<'_>, what: For, most: Duration) {
    let event = match what {
        For::Reading => pg_sys::WL_SOCKET_READABLE,
        For::Writing => pg_sys::WL_SOCKET_WRITEABLE,
    };
    wait(event, socket.as_raw_fd(), most);
}

/// Waits so long, unless the query is cancelled or the server stops. The postmaster, which must not wait long, just waits.
pub(crate) fn pause(most: Duration) {
    const NO_SOCKET: i32 = -1;
    // SAFETY: a plain global, and a plain pause.
    unsafe {
        if !pg_sys::IsUnderPostmaster {
            return pg_sys::pg_usleep(most.as_micros() as std::ffi::c_long);
        }
    }
    wait(0, NO_SOCKET, most);
}

fn wait(event: u32, socket: i32, most: Duration) {
    let events = event | pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    let most = most.as_millis().clamp(1, 3_600_000);
    // SAFETY: a process that reads pages has a latch, and is one of the postmaster's.
    unsafe {
        let latch = pg_sys::MyLatch;
        let happened = pg_sys::WaitLatchOrSocket(
            latch,
            events.cast_signed(),
            socket,
            most as std::ffi::c_long,
            pg_sys::PG_WAIT_EXTENSION,
        );
        if happened.cast_unsigned() & pg_sys::WL_LATCH_SET != 0 {
            pg_sys::ResetLatch(latch);
            TAKEN.store(true, Ordering::Relaxed);
        }
        if pg_sys::MyAuxProcType == pg_sys::AuxProcType::StartupProcess {
            pg_sys::ffi::pg_guard_ffi_boundary(|| HandleStartupProcInterrupts());
        }
    }
    pgrx::check_for_interrupts!();
    // The autovacuum launcher, say, which has its own way to end.
    // SAFETY: a plain flag.
    if unsafe { pg_sys::ShutdownRequestPending } != 0 {
        ereport!(
            FATAL,
            PgSqlErrorCode::ERRCODE_ADMIN_SHUTDOWN,
            "zenith_compute: the wait for a page ends with its process"
        );
    }
}
