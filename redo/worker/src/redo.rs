//! One page: base page and changes in, page out.

use crate::smgr::{self, Block};
use pgrx_pg_sys as pg;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use zenith_pgformat::wal::RmgrId;
use zenith_pgformat::{BLCKSZ, Lsn, Page};
use zenith_redo::native::Edit;
use zenith_redo::page;
use zenith_redo::shm::{self, ChangeHeader, Item};
use zenith_redo::stamps::{self, Stamp};

/// `sizeof(XLogRecord)`
const RECORD_HEADER: usize = 24;
/// The forks that PostgreSQL 15 has.
const FORKS: i32 = 4;

/// Why a page could not be built.
enum Trouble {
    LostBase,
    Failed(String),
    BadRecord(String),
    BadEdit(String),
}

impl Trouble {
    fn status(&self) -> u32 {
        match self {
            Trouble::LostBase => shm::LOST_BASE,
            Trouble::Failed(_) => shm::FAILED,
            Trouble::BadRecord(_) => shm::BAD_RECORD,
            Trouble::BadEdit(_) => shm::BAD_EDIT,
        }
    }

    fn text(&self) -> &str {
        match self {
            Trouble::LostBase => "",
            Trouble::Failed(text) | Trouble::BadRecord(text) | Trouble::BadEdit(text) => text,
        }
    }
}

/// Calls functions of `pgrx_pg_sys`, which turn an `ereport(ERROR)` into a panic, and turns that into its text.
pub(crate) fn guarded<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    std::panic::catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        match payload.downcast_ref::<pg::panic::CaughtError>() {
            Some(
                pg::panic::CaughtError::PostgresError(report)
                | pg::panic::CaughtError::ErrorReport(report)
                | pg::panic::CaughtError::RustPanic { ereport: report, .. },
            ) => match report.detail() {
                Some(detail) => format!("{} ({detail})", report.message()),
                None => report.message().to_owned(),
            },
            None => "an unexpected panic".to_owned(),
        }
    })
}

/// What is known of a decoded record.
struct Decoded {
    /// The reference to the wanted block.
    block_id: u8,
    rmgr: RmgrId,
    info: u8,
    /// Redo initialises or restores other blocks.
    builds_others: bool,
}

/// What redo of one page after another needs.
pub(crate) struct Redo {
    /// PostgreSQL's reader, which redo functions are passed; it reads nothing.
    reader: *mut pg::XLogReaderState,
    /// Room for the decoded record.
    decoded: Vec<u64>,
    /// What redo allocates for a record.
    memory: pg::MemoryContext,
    target: Block,
    /// Where the wanted page lies: in the region, where the storage manager reads and writes it, too. Therefore it is never
    /// borrowed across a call into PostgreSQL.
    page: *mut Page,
    /// Whether hint bits are logged.
    hint_bits_logged: bool,
    /// The buffer in which the page was last.
    buffer: pg::Buffer,
    /// Whether the page may be in PostgreSQL's buffers, newer than where the item keeps it.
    buffered: bool,
}

impl Redo {
    /// # Safety
    /// In a process prepared for redo.
    pub(crate) unsafe fn new() -> Result<Redo, String> {
        let mut routine = pg::XLogReaderRoutine::default();
        let routine = &raw mut routine;
        // SAFETY: PostgreSQL's own allocation; the routine is copied.
        let (reader, memory) = guarded(|| unsafe {
            let reader =
                pg::XLogReaderAllocate(pg::wal_segment_size, std::ptr::null(), routine, std::ptr::null_mut());
            let memory = pg::AllocSetContextCreateInternal(
                pg::TopMemoryContext,
                c"zenith redo".as_ptr(),
                0,
                8192,
                8 << 20,
            );
            (reader, memory)
        })?;
        if reader.is_null() {
            return Err("out of memory".to_owned());
        }
        let target = Block { node: (0, 0, 0), fork: 0, block: smgr::BLOCKS };
        Ok(Redo {
            reader,
            decoded: Vec::new(),
            memory,
            target,
            page: std::ptr::null_mut(),
            hint_bits_logged: false,
            buffer: 0,
            buffered: false,
        })
    }

    /// Builds one page in place. `length` is the item's, changes included; `progress` is told each change.
    ///
    /// # Safety
    /// `item` begins `length` readable bytes, and nobody else touches them.
    pub(crate) unsafe fn item(&mut self, item: NonNull<Item>, length: usize, progress: &AtomicU32) {
        let mut at = 0;
        // SAFETY: the caller's promise.
        let outcome = unsafe { self.changes(item, length, progress, &mut at) };
        let outcome = outcome.and_then(|()| self.fetch());
        if matches!(outcome, Err(Trouble::Failed(_))) {
            clean_up_after_error();
        }
        self.forget_buffers();
        // SAFETY: PostgreSQL has no buffer of the page any more, and is not called below.
        let item = unsafe { &mut *item.as_ptr() };
        let status = match outcome {
            Ok(()) => shm::DONE,
            Err(trouble) => {
                let text = trouble.text().as_bytes();
                let text = text.get(..text.len().min(item.page.len())).unwrap_or_default();
                if let Some(place) = item.page.get_mut(..text.len()) {
                    place.copy_from_slice(text);
                }
                item.head.text_length = u32::try_from(text.len()).unwrap_or(0);
                item.head.change = at;
                trouble.status()
            }
        };
        item.head.status.store(status, Ordering::Release);
    }

    unsafe fn changes(
        &mut self,
        item: NonNull<Item>,
        length: usize,
        progress: &AtomicU32,
        at: &mut u32,
    ) -> Result<(), Trouble> {
        // SAFETY: the caller's promise; the borrow ends before PostgreSQL is called.
        let count = unsafe { self.begin(&mut *item.as_ptr()) };
        if self.target.fork >= FORKS || self.target.block >= smgr::BLOCKS {
            return Err(Trouble::BadRecord("there is no such block".to_owned()));
        }
        smgr::set_target(self.target, self.page);
        // SAFETY: a global of the server, one thread.
        unsafe { pg::wal_log_hints = self.hint_bits_logged };
        self.verify()?;

        let start = item.cast::<u8>();
        let mut offset = size_of::<Item>();
        for index in 0..count {
            *at = index;
            progress.store(index, Ordering::Release);
            let body = offset + size_of::<ChangeHeader>();
            if body > length {
                return Err(Trouble::BadRecord("it lies past the end of its batch".to_owned()));
            }
            // SAFETY: inside of the item's bytes, and aligned as everything in a region is.
            let change = unsafe { start.add(offset).cast::<ChangeHeader>().read() };
            let size = change.length as usize;
            if length - body < size {
                return Err(Trouble::BadRecord("it lies past the end of its batch".to_owned()));
            }
            // SAFETY: as above.
            let bytes = unsafe { start.add(body) };
            let end = Lsn(change.end);
            if change.kind == shm::EDIT {
                // SAFETY: `size` bytes of the item, behind its page.
                let edit = Edit::decode(unsafe { std::slice::from_raw_parts(bytes.as_ptr(), size) });
                self.native(&edit.map_err(|error| Trouble::BadEdit(error.to_string()))?, end)?;
            } else {
                // SAFETY: as above.
                unsafe { self.record(bytes.as_ptr(), size, end)? };
            }
            offset = body + shm::aligned(size);
        }
        Ok(())
    }

    /// Takes over what an item asks for; the number of its changes.
    fn begin(&mut self, item: &mut Item) -> u32 {
        let head = &item.head;
        let (node, fork) = ((head.spc, head.db, head.rel), i32::try_from(head.fork).unwrap_or(FORKS));
        self.target = Block { node, fork, block: head.block };
        self.hint_bits_logged = head.hint_bits_logged != 0;
        self.page = &raw mut item.page;
        self.buffered = false;
        item.head.changes
    }

    /// The page where it lies, while PostgreSQL has no newer one in a buffer.
    fn page(&mut self) -> &mut Page {
        // SAFETY: set by `begin`; the borrow cannot outlive a call into PostgreSQL, which needs `self`, too.
        unsafe { &mut *self.page }
    }

    /// A page that PostgreSQL would call invalid must not reach redo: some reads would quietly zero it.
    fn verify(&self) -> Result<(), Trouble> {
        let (page, block) = (self.page.cast(), self.target.block);
        // SAFETY: a pure function of the page; checksums are off in this process's cluster.
        match guarded(|| unsafe { pg::PageIsVerifiedExtended(page, block, 0) }) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Trouble::BadRecord("the page before it has an invalid header".to_owned())),
            Err(message) => Err(Trouble::Failed(message)),
        }
    }

    fn native(&mut self, edit: &Edit, end: Lsn) -> Result<(), Trouble> {
        self.fetch()?;
        self.forget_buffers();
        edit.apply(self.page(), end).map_err(|error| match error {
            zenith_redo::native::EditError::LostBase(_) => Trouble::LostBase,
            other => Trouble::BadEdit(other.to_string()),
        })
    }

    /// One record: PostgreSQL's redo, or its image.
    unsafe fn record(&mut self, raw: *mut u8, size: usize, end: Lsn) -> Result<(), Trouble> {
        // SAFETY: the caller's promise.
        let Decoded { block_id, rmgr, info, builds_others } = unsafe { self.decode(raw, size, end)? };
        // SAFETY: `decode` filled it, and found the reference.
        let block = unsafe { &*block_at(self.decoded.as_ptr().cast(), block_id) };
        let restores = block.has_image && block.apply_image;
        let initialises = u32::from(block.flags) & pg::BKPBLOCK_WILL_INIT != 0;

        if restores && stamps::image_is_final(rmgr, info, block_id) {
            return self.restore(block_id, end);
        }
        if stamps::finishes_gin_split(rmgr, info, block_id) {
            return self.native(&Edit::GinFinishSplit, end);
        }
        if rmgr == RmgrId::XLOG {
            // FPI_FOR_HINT may come without an image and is nothing then; FPI may not.
            return if info & 0xF0 == 0xA0 {
                Ok(())
            } else {
                Err(Trouble::BadRecord(format!(
                    "an XLOG record (info {info:#04x}) without an image changes no page"
                )))
            };
        }
        let stamp = Stamp::of(rmgr, info, block_id, self.hint_bits_logged);
        let starts = restores || initialises;
        // What a record has been applied to was looked at then.
        if !starts && !stamp.begins_with_zeros() && !self.buffered && page::is_new(self.page()) {
            return Err(Trouble::LostBase);
        }
        self.redo(rmgr)?;
        let (lsn, new) = self.look(|page| (page::lsn(page), page::is_new(page)))?;
        let moved = starts || stamp.moves_lsn();
        if new || moved && lsn < end {
            return Err(Trouble::LostBase);
        }
        if builds_others {
            // They look real now: the next record that refers to them would be applied to them.
            self.fetch()?;
            self.forget_buffers();
        }
        Ok(())
    }

    /// Decodes the record as PostgreSQL does and finds the wanted block in it.
    unsafe fn decode(&mut self, raw: *mut u8, size: usize, end: Lsn) -> Result<Decoded, Trouble> {
        let record = raw.cast::<pg::XLogRecord>();
        // SAFETY: `size` bytes are readable; the header is read only if it fits.
        if size < RECORD_HEADER || unsafe { (*record).xl_tot_len } as usize != size {
            return Err(Trouble::BadRecord("its length is not the one it claims".to_owned()));
        }
        // SAFETY: a pure function.
        let room = guarded(|| unsafe { pg::DecodeXLogRecordRequiredSpace(size) }).map_err(Trouble::Failed)?;
        let words = room.div_ceil(size_of::<u64>());
        if self.decoded.len() < words {
            self.decoded.resize(words, 0);
        }
        let decoded = self.decoded.as_mut_ptr().cast::<pg::DecodedXLogRecord>();
        let reader = self.reader;
        let mut message = std::ptr::null_mut();
        let message_out = &raw mut message;
        // SAFETY: room as PostgreSQL asked for; the record is as long as it says.
        let sound = unsafe {
            (*reader).ReadRecPtr = end.0;
            (*reader).EndRecPtr = end.0;
            (*reader).record = decoded;
            guarded(|| pg::DecodeXLogRecord(reader, decoded, record, end.0, message_out))
                .map_err(Trouble::Failed)?
        };
        if !sound {
            // SAFETY: a text in the reader's buffer.
            let text = unsafe { std::ffi::CStr::from_ptr((*reader).errormsg_buf) };
            return Err(Trouble::BadRecord(text.to_string_lossy().into_owned()));
        }
        // SAFETY: decoded just now.
        let (rmgr, info) = unsafe {
            (*decoded).next_lsn = end.0;
            (RmgrId((*decoded).header.xl_rmid), (*decoded).header.xl_info)
        };
        // SAFETY: as above.
        let (block_id, builds_others) = unsafe { self.find_block(decoded)? };
        if changes_pages(rmgr) {
            return Ok(Decoded { block_id, rmgr, info, builds_others });
        }
        let why =
            if rmgr.is_custom() { "the extension that owns it is not loaded" } else { "it changes no pages" };
        Err(Trouble::BadRecord(format!("resource manager {rmgr} cannot be redone for a page: {why}")))
    }

    /// The reference to the wanted block, and whether redo builds others. All references must be ones that redo can be
    /// let near.
    unsafe fn find_block(&self, decoded: *const pg::DecodedXLogRecord) -> Result<(u8, bool), Trouble> {
        let mut found = None;
        let mut builds_others = false;
        // SAFETY: a decoded record has blocks up to its maximum.
        let count = unsafe { (*decoded).max_block_id } + 1;
        for id in 0..u8::try_from(count).unwrap_or(0) {
            // SAFETY: as above.
            let block = unsafe { &*block_at(decoded, id) };
            if !block.in_use {
                continue;
            }
            let hole = usize::from(block.hole_offset) + usize::from(block.hole_length);
            if block.forknum >= FORKS || block.blkno >= smgr::BLOCKS || block.has_image && hole > BLCKSZ {
                return Err(Trouble::BadRecord(format!("its block reference {id} is damaged")));
            }
            let node =
                (block.rnode.spcNode.to_u32(), block.rnode.dbNode.to_u32(), block.rnode.relNode.to_u32());
            if self.target == (Block { node, fork: block.forknum, block: block.blkno }) {
                found = Some(id);
            } else {
                let initialises = u32::from(block.flags) & pg::BKPBLOCK_WILL_INIT != 0;
                builds_others |= initialises || block.has_image && block.apply_image;
            }
        }
        let found = found.ok_or_else(|| Trouble::BadRecord("it does not refer to this block".to_owned()))?;
        Ok((found, builds_others))
    }

    /// The page is the record's image (`XLogReadBufferForRedoExtended`).
    fn restore(&mut self, block_id: u8, end: Lsn) -> Result<(), Trouble> {
        self.forget_buffers();
        let (reader, place) = (self.reader, self.page.cast());
        // SAFETY: PostgreSQL's own function on its decoded record, into a page.
        let restored =
            guarded(|| unsafe { pg::RestoreBlockImage(reader, block_id, place) }).map_err(Trouble::Failed)?;
        if !restored {
            // SAFETY: a text in the reader's buffer.
            let text = unsafe { std::ffi::CStr::from_ptr((*reader).errormsg_buf) };
            return Err(Trouble::BadRecord(text.to_string_lossy().into_owned()));
        }
        if !page::is_new(self.page()) {
            page::set_lsn(self.page(), end);
        }
        Ok(())
    }

    /// Calls the resource manager's redo function.
    fn redo(&mut self, rmgr: RmgrId) -> Result<(), Trouble> {
        // SAFETY: RmgrTable has an entry for every number; the server exports it without a length.
        let function =
            unsafe { (*(&raw const pg::RmgrTable).cast::<pg::RmgrData>().add(rmgr.0.into())).rm_redo };
        let Some(function) = function else {
            return Err(Trouble::BadRecord(format!("this server has no redo for resource manager {rmgr}")));
        };
        self.buffered = true;
        let (reader, memory) = (self.reader, self.memory);
        // SAFETY: what `ApplyWalRecord` does, with a decoded record, in a memory context of its own. The boundary is for
        // functions that pgrx has not wrapped; its closure holds nothing that needs dropping.
        let outcome = unsafe {
            let before = pg::CurrentMemoryContext;
            pg::CurrentMemoryContext = memory;
            let outcome = guarded(|| pg::ffi::pg_guard_ffi_boundary(|| function(reader)));
            pg::CurrentMemoryContext = before;
            outcome.and_then(|()| guarded(|| pg::MemoryContextReset(memory)))
        };
        outcome.map_err(Trouble::Failed)
    }

    /// Looks at the page as it is now.
    fn look<T>(&mut self, read: impl FnOnce(&Page) -> T) -> Result<T, Trouble> {
        if !self.buffered {
            return Ok(read(self.page()));
        }
        let buffer = self.pin()?;
        // SAFETY: a pinned buffer of one page.
        let out = unsafe {
            let offset = usize::try_from(buffer - 1).unwrap_or(0) * BLCKSZ;
            read(&*pg::BufferBlocks.add(offset).cast::<Page>())
        };
        // SAFETY: pinned above.
        guarded(|| unsafe { pg::ReleaseBuffer(buffer) }).map_err(Trouble::Failed)?;
        Ok(out)
    }

    /// The page's buffer, pinned.
    fn pin(&mut self) -> Result<pg::Buffer, Trouble> {
        let Block { node: (spc, db, rel), fork, block } = self.target;
        let node = pg::RelFileNode {
            spcNode: pg::Oid::from_u32(spc),
            dbNode: pg::Oid::from_u32(db),
            relNode: pg::Oid::from_u32(rel),
        };
        let recent = self.buffer;
        // SAFETY: PostgreSQL's own look-ups; the recent buffer is checked by it.
        let buffer = guarded(|| unsafe {
            if recent > 0 && pg::ReadRecentBuffer(node, fork, block, recent) {
                return recent;
            }
            let mode = pg::ReadBufferMode::RBM_NORMAL;
            pg::ReadBufferWithoutRelcache(node, fork, block, mode, std::ptr::null_mut(), true)
        });
        self.buffer = buffer.map_err(Trouble::Failed)?;
        Ok(self.buffer)
    }

    /// Brings the page back to where the item keeps it.
    fn fetch(&mut self) -> Result<(), Trouble> {
        if self.buffered {
            let place = self.page;
            // SAFETY: the buffer is PostgreSQL's, the place is the item's.
            self.look(|page| unsafe { place.copy_from_nonoverlapping(page, 1) })?;
        }
        Ok(())
    }

    /// Drops all buffers, so that nothing of this page can show in the next one.
    fn forget_buffers(&mut self) {
        let mut opened = smgr::no_relations();
        let count = smgr::take_opened(&mut opened);
        let relations = &raw mut opened[0];
        // SAFETY: relations that PostgreSQL opened and that nobody closed; no buffer is pinned.
        let outcome = guarded(|| unsafe {
            for index in 0..count {
                pg::DropRelFileNodesAllBuffers(relations.add(index), 1);
                pg::smgrclose(*relations.add(index));
            }
        });
        // Dropping asks for their sizes again.
        smgr::forget_opened();
        self.buffered = false;
        if let Err(message) = outcome {
            crate::refuse(&format!("cannot drop buffers: {message}"));
        }
    }
}

/// The resource managers whose records change pages of relations.
fn changes_pages(rmgr: RmgrId) -> bool {
    matches!(
        rmgr,
        RmgrId::XLOG
            | RmgrId::HEAP2
            | RmgrId::HEAP
            | RmgrId::BTREE
            | RmgrId::HASH
            | RmgrId::GIN
            | RmgrId::GIST
            | RmgrId::SEQ
            | RmgrId::SPGIST
            | RmgrId::BRIN
            | RmgrId::GENERIC
    )
}

/// `XLogRecGetBlock`
unsafe fn block_at(decoded: *const pg::DecodedXLogRecord, id: u8) -> *const pg::DecodedBkpBlock {
    // SAFETY: the caller asks for a block that the record has.
    unsafe { (&raw const (*decoded).blocks).cast::<pg::DecodedBkpBlock>().add(id.into()) }
}

/// Gives back what an error left held (`AbortTransaction` in small). A process that cannot is of no use.
fn clean_up_after_error() {
    // SAFETY: what PostgreSQL itself does after an error outside of a transaction.
    let outcome = unsafe {
        pg::CritSectionCount = 0;
        pg::InterruptHoldoffCount = 0;
        pg::QueryCancelHoldoffCount = 0;
        guarded(|| {
            pg::LWLockReleaseAll();
            pg::AbortBufferIO();
            pg::UnlockBuffers();
            pg::ReleaseAuxProcessResources(false);
        })
    };
    if let Err(message) = outcome {
        crate::refuse(&format!("cannot clean up after an error: {message}"));
    }
}
