//! The region that a caller shares with one redo process: its layout, and whose turn it is.
//!
//! The caller fills a batch, counts `asked` up, and waits until `answered` is equal to it; the process does the
//! reverse. Each spins for a moment and then sleeps on a futex. The region belongs to the caller while it is not waiting.
//! The process may have been corrupted by what it redoes: the caller believes nothing in the region but statuses, LSNs,
//! text and page bytes, and computes all positions itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use zenith_pgformat::{BLCKSZ, Page};

/// Says that a region is one.
pub const MAGIC: u64 = 0x5A45_4E49_5448_5244;
/// Counts up with every change of the layout below: library and caller must come from one build.
pub const LAYOUT: u32 = 2;
/// The descriptor under which a redo process inherits its region.
pub const REGION_FD: i32 = 3;
/// The descriptor under which a redo process inherits our library, so that its user need not reach the file's path.
pub const LIBRARY_FD: i32 = 4;
/// Text about a process that did not start.
pub const TEXT_SIZE: usize = 4096;
/// Where the batch begins.
pub const ARENA: usize = 8192;
/// Everything in the batch begins at a multiple of this (`MAXIMUM_ALIGNOF`).
pub const ALIGN: usize = 8;

/// [`Header::state`]: the process is starting.
pub const STARTING: u32 = 0;
/// [`Header::state`]: the process is in its sandbox and takes batches.
pub const READY: u32 = 1;

/// [`ItemHead::status`]: not finished.
pub const PENDING: u32 = 0;
/// [`ItemHead::status`]: the page is done.
pub const DONE: u32 = 1;
/// [`ItemHead::status`]: the change at `change` found no base page.
pub const LOST_BASE: u32 = 2;
/// [`ItemHead::status`]: PostgreSQL raised an error at `change`.
pub const FAILED: u32 = 3;
/// [`ItemHead::status`]: the record at `change` cannot be redone for this block.
pub const BAD_RECORD: u32 = 4;
/// [`ItemHead::status`]: the edit at `change` cannot be applied.
pub const BAD_EDIT: u32 = 5;

/// [`ChangeHeader::kind`]: a WAL record.
pub const RECORD: u32 = 0;
/// [`ChangeHeader::kind`]: a native edit.
pub const EDIT: u32 = 1;

/// The start of a region.
#[repr(C)]
pub struct Header {
    /// [`MAGIC`]
    pub magic: u64,
    /// [`LAYOUT`]
    pub layout: u32,
    /// Items in the batch.
    pub items: u32,
    /// How far the process has got ([`STARTING`], [`READY`]); a futex.
    pub state: AtomicU32,
    /// Batches asked for; a futex.
    pub asked: AtomicU32,
    /// Not 0 while the process sleeps, or is about to, until `asked` changes.
    pub worker_sleeps: AtomicU32,
    /// Batches answered; a futex.
    pub answered: AtomicU32,
    /// Not 0 while the caller sleeps, or is about to, until `answered` changes.
    pub caller_sleeps: AtomicU32,
    /// Batches that the process has begun.
    pub taken: AtomicU32,
    /// The item that the process is working on.
    pub item: AtomicU32,
    /// The change of that item.
    pub change: AtomicU32,
}

/// One page of a batch, followed by its changes.
#[repr(C)]
pub struct Item {
    /// What is asked, and the outcome.
    pub head: ItemHead,
    /// The base page, then the finished page.
    pub page: Page,
}

/// What is asked of a page, and the outcome.
#[repr(C)]
pub struct ItemHead {
    /// Tablespace.
    pub spc: u32,
    /// Database.
    pub db: u32,
    /// `relfilenode`.
    pub rel: u32,
    /// Block.
    pub block: u32,
    /// Fork.
    pub fork: u32,
    /// Not 0 if the cluster logs hint bits.
    pub hint_bits_logged: u32,
    /// How many changes follow.
    pub changes: u32,
    /// Bytes from here to the next item.
    pub length: u32,
    /// The outcome; set last.
    pub status: AtomicU32,
    /// With an outcome that is an error: the change.
    pub change: u32,
    /// With an outcome that is an error: length of the text that `page` holds instead of a page.
    pub text_length: u32,
    /// Keeps `page` aligned.
    pub padding: u32,
}

/// One change, followed by its bytes and padding up to [`ALIGN`].
#[repr(C)]
pub struct ChangeHeader {
    /// End of the record.
    pub end: u64,
    /// [`RECORD`] or [`EDIT`]
    pub kind: u32,
    /// Length of the bytes that follow.
    pub length: u32,
}

const _: () = assert!(size_of::<Header>() <= ARENA);
const _: () =
    assert!(size_of::<Item>().is_multiple_of(ALIGN) && size_of::<ChangeHeader>().is_multiple_of(ALIGN));
const _: () = assert!(size_of::<Item>() == BLCKSZ + 48);

/// A mapped region.
pub struct Region {
    base: NonNull<u8>,
    length: usize,
}

// The region is plain memory; whose turn it is decides who touches it.
unsafe impl Send for Region {}

impl Region {
    /// Maps a memfd of `length` bytes, at least [`ARENA`].
    pub fn map(fd: BorrowedFd<'_>, length: usize) -> io::Result<Region> {
        if length < ARENA + size_of::<Item>() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        // SAFETY: a new mapping; nothing else is at the address that the kernel chooses.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|base| Region { base, length })
            .ok_or_else(|| io::ErrorKind::Other.into())
    }

    /// Bytes in the region.
    pub fn length(&self) -> usize {
        self.length
    }

    /// The header.
    pub fn header(&self) -> &Header {
        // SAFETY: `map` checked the length; mappings are page-aligned; the fields that the other side changes are atomic.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    /// The header, for whoever fills it.
    pub fn header_mut(&mut self) -> &mut Header {
        // SAFETY: as above.
        unsafe { self.base.cast::<Header>().as_mut() }
    }

    /// `length` bytes at `offset`; `None` past the end.
    pub fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        // SAFETY: the bytes lie inside of the mapping.
        (end <= self.length).then(|| unsafe { self.base.add(offset) })
    }

    /// The item at `offset`; `None` past the end or unaligned.
    pub fn item(&self, offset: usize) -> Option<NonNull<Item>> {
        if !offset.is_multiple_of(ALIGN) {
            return None;
        }
        self.at(offset, size_of::<Item>()).map(NonNull::cast)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the mapping that `map` made.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// How often a side looks before it sleeps where the other is not expected soon: some microseconds.
pub const SHORT_SPIN: u32 = 200;
/// The same where it is: some ten microseconds, which is what waking a sleeper costs.
pub const LONG_SPIN: u32 = 2000;

/// Looks so often whether `word` is no longer `old`; whether it came to that.
pub fn spin_until_changed(word: &AtomicU32, old: u32, spins: u32) -> bool {
    for _ in 0..spins {
        if word.load(Ordering::Acquire) != old {
            return true;
        }
        std::hint::spin_loop();
    }
    false
}

/// Sleeps until `word` is no longer `old`, someone wakes it, or `limit` passes; `false` if it did. It may wake early.
pub fn futex_wait(word: &AtomicU32, old: u32, limit: Option<Duration>) -> bool {
    let limit = limit.map(|limit| libc::timespec {
        tv_sec: libc::time_t::try_from(limit.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    let pointer = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    // SAFETY: the word and the limit outlive the call. Not FUTEX_PRIVATE: the other side is another process.
    let outcome = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, old, pointer) };
    outcome == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Wakes whoever sleeps on `word`.
pub fn futex_wake(word: &AtomicU32) {
    // SAFETY: the word outlives the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, i32::MAX) };
}

/// Rounds up to [`ALIGN`].
pub fn aligned(length: usize) -> usize {
    length.next_multiple_of(ALIGN)
}
