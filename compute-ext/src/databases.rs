//! What changes the files of a database past the storage manager.
//!
//! **`DROP DATABASE`** removes them from the file system. The limits of the database go to 0 when that is done and before its
//! transaction commits. Before it would be too early: a command that is refused or cancelled leaves a database whose pages could
//! not be fetched any more. Later would be too late: another database may get the number, and the names of its files. A crash
//! between the two leaves a database that is marked invalid and whose files are gone, or going: it can only be dropped again; and
//! where recovery replays the drop, it sets the limits first.
//!
//! **`CREATE DATABASE … STRATEGY file_copy`** and **`ALTER DATABASE … SET TABLESPACE`** copy files: holes would be copied as zeros,
//! for which no page would ever be fetched. They are refused until the database is filled.

use crate::limits;
use pgrx::prelude::*;
use std::ffi::{CStr, c_char};
use std::sync::OnceLock;
use zenith_pgformat::Oid;

/// `RM_DBASE_ID` (access/rmgrlist.h), and its name there.
const RM_DBASE: usize = 4;
const RM_DBASE_NAME: &CStr = c"Database";
/// `XLR_INFO_MASK` (access/xlogrecord.h).
const XLR_INFO_MASK: u8 = 0x0F;
// commands/dbcommands_xlog.h
const CREATE_FILE_COPY: u8 = 0x00;
const DROP: u8 = 0x20;
/// `template1`, from which databases are made when nothing else is said.
const DEFAULT_TEMPLATE: &CStr = c"template1";

unsafe extern "C-unwind" {
    /// tcop/utility.h, outside of pgrx's guard.
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        parameters: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

type Redo = unsafe extern "C-unwind" fn(record: *mut pg_sys::XLogReaderState);

/// Who would have been called.
struct Before {
    utility: pg_sys::ProcessUtility_hook_type,
    redo: Redo,
}

static BEFORE: OnceLock<Before> = OnceLock::new();

/// Has a look at commands, and at what recovery replays.
pub(crate) fn watch() -> Result<(), String> {
    // SAFETY: the table is PostgreSQL's, exported and writable, with an entry for every built-in resource manager; the postmaster
    // has one thread.
    unsafe {
        let manager = (&raw mut pg_sys::RmgrTable).cast::<pg_sys::RmgrData>().add(RM_DBASE);
        let is_it = !(*manager).rm_name.is_null() && CStr::from_ptr((*manager).rm_name) == RM_DBASE_NAME;
        let Some(redo) = (*manager).rm_redo.filter(|_| is_it) else {
            return Err("this server's resource managers are not PostgreSQL 15's".to_owned());
        };
        let before = Before { utility: pg_sys::ProcessUtility_hook, redo };
        BEFORE.set(before).map_err(|_| "loaded twice".to_owned())?;
        (*manager).rm_redo = Some(replay);
        pg_sys::ProcessUtility_hook = Some(utility);
    }
    Ok(())
}

/// `ProcessUtility_hook`. The command itself runs outside of every guard: caught and raised again, its errors would lose the position in
/// the query and the names of what they are about. No frame here has anything to clean up.
#[allow(clippy::too_many_arguments, reason = "PostgreSQL's signature")]
unsafe extern "C-unwind" fn utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    parameters: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL passes a statement; what comes before is called with what was passed.
    unsafe {
        let drops = before_command((*statement).utilityStmt);
        let before = BEFORE.get().and_then(|before| before.utility);
        match before {
            Some(before) => {
                before(statement, text, read_only, context, parameters, environment, destination, completion);
            }
            None => standard_ProcessUtility(
                statement,
                text,
                read_only,
                context,
                parameters,
                environment,
                destination,
                completion,
            ),
        }
        if drops {
            after_drop();
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_command(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: PostgreSQL passes a statement.
    unsafe { look_at(statement) }
}

/// Databases that are not there any more have nothing to be fetched. By the catalog, not by the name that was given: another may have
/// got that meanwhile.
#[pg_guard]
unsafe extern "C-unwind" fn after_drop() {
    // SAFETY: within the transaction that has dropped one.
    unsafe {
        pg_sys::CommandCounterIncrement();
        for database in limits::databases() {
            if pg_sys::get_database_name(pg_sys::Oid::from(database)).is_null() {
                limits::retire(database, None);
            }
        }
    }
}

/// Refuses what would copy holes. Whether a statement drops a database.
unsafe fn look_at(statement: *mut pg_sys::Node) -> bool {
    // SAFETY: a statement's tag says what it is.
    unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_DropdbStmt => true,
            pg_sys::NodeTag::T_CreatedbStmt => {
                let options = (*statement.cast::<pg_sys::CreatedbStmt>()).options;
                let by_files = option(options, "strategy").is_some_and(|strategy| {
                    CStr::from_ptr(strategy).to_bytes().eq_ignore_ascii_case(b"file_copy")
                });
                if by_files {
                    let template = option(options, "template").unwrap_or(DEFAULT_TEMPLATE.as_ptr());
                    refuse_holes(template, "Use STRATEGY wal_log.");
                }
                false
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let statement = &*statement.cast::<pg_sys::AlterDatabaseStmt>();
                if option(statement.options, "tablespace").is_some() {
                    refuse_holes(statement.dbname, "Wait until all pages are here.");
                }
                false
            }
            _ => false,
        }
    }
}

unsafe fn number_of(name: *const c_char) -> Option<Oid> {
    // SAFETY: a database's name, within a transaction.
    let number = unsafe { pg_sys::get_database_oid(name, true) };
    (number != pg_sys::InvalidOid).then(|| number.to_u32())
}

unsafe fn refuse_holes(name: *const c_char, remedy: &str) {
    // SAFETY: a database's name, within a transaction.
    let (number, name) = unsafe { (number_of(name), CStr::from_ptr(name).to_string_lossy().into_owned()) };
    let unfilled = number.map_or(0, limits::unfilled);
    if unfilled > 0 {
        ereport!(
            ERROR,
            PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
            format!("cannot copy the files of database \"{name}\": not all of its pages are here"),
            format!("{unfilled} of its files have pages that are fetched when they are touched. {remedy}")
        );
    }
}

/// The value of an option of a statement.
unsafe fn option(options: *mut pg_sys::List, name: &str) -> Option<*const c_char> {
    if options.is_null() {
        return None;
    }
    // SAFETY: a list of `DefElem`.
    unsafe {
        let count = usize::try_from((*options).length).unwrap_or(0);
        let elements = std::slice::from_raw_parts((*options).elements, count);
        let mut definitions = elements.iter().map(|element| element.ptr_value.cast::<pg_sys::DefElem>());
        let found = definitions.find(|one| CStr::from_ptr((**one).defname).to_bytes() == name.as_bytes());
        found.map(|found| pg_sys::defGetString(found).cast_const())
    }
}

/// `rm_redo` of databases.
unsafe extern "C-unwind" fn replay(record: *mut pg_sys::XLogReaderState) {
    // SAFETY: as PostgreSQL passed it; the original is called outside of every guard, as a command is.
    unsafe {
        before_replay(record);
        if let Some(before) = BEFORE.get() {
            (before.redo)(record);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn before_replay(record: *mut pg_sys::XLogReaderState) {
    // SAFETY: PostgreSQL passes a decoded record, whose main data lives as long.
    let (info, data) = unsafe {
        let decoded = &*(*record).record;
        let length = decoded.main_data_len as usize;
        let data = if decoded.main_data.is_null() {
            &[][..]
        } else {
            std::slice::from_raw_parts(decoded.main_data.cast::<u8>(), length)
        };
        (decoded.header.xl_info & !XLR_INFO_MASK, data)
    };
    let number = |at: usize| {
        let bytes = data.get(at * 4..)?.first_chunk::<4>()?;
        Some(u32::from_ne_bytes(*bytes))
    };
    match info {
        // db_id, ntablespaces, tablespace_ids[]: also the old place of a database that was moved.
        DROP => {
            let tablespaces = (2..2 + number(1).unwrap_or(0) as usize).map_while(number);
            tablespaces.for_each(|tablespace| limits::retire(number(0).unwrap_or(0), Some(tablespace)));
        }
        // db_id, tablespace_id, src_db_id, src_tablespace_id
        CREATE_FILE_COPY if number(2).is_some_and(|source| limits::unfilled(source) > 0) => {
            ereport!(
                FATAL,
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "zenith_compute: cannot replay a copy of a database's files, not all of whose pages are here"
            );
        }
        _ => {}
    }
}
