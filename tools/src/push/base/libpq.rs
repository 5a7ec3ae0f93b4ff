//! A connection through libpq, which gives PG* variables, service files, passwords and TLS as in pg_basebackup.
//! The only place of this crate that calls C.

mod api;

use api::{CONNECTION_OK, Libpq, PGRES_COMMAND_OK, PGRES_COPY_OUT, PGRES_TUPLES_OK, PGconn, PGresult, libpq};
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr::{self, NonNull};

/// `PG_DIAG_SQLSTATE`, postgres_ext.h.
const DIAG_SQLSTATE: c_int = b'C' as c_int;
/// `PG_DIAG_SEVERITY_NONLOCALIZED`, postgres_ext.h.
const DIAG_SEVERITY: c_int = b'V' as c_int;
/// `PG_DIAG_MESSAGE_PRIMARY`, postgres_ext.h.
const DIAG_MESSAGE: c_int = b'M' as c_int;
/// Seconds to wait for a server that does not answer, unless the user says otherwise.
const CONNECT_TIMEOUT: &str = "30";

/// How to reach the server; what is not given comes from PG* variables and service files.
#[derive(Clone, Default)]
pub struct ConnectOptions {
    /// `-d`: a connection string; its database name is not used for replication.
    pub connection_string: Option<String>,
    /// `-h`.
    pub host: Option<String>,
    /// `-p`.
    pub port: Option<String>,
    /// `-U`.
    pub user: Option<String>,
    /// A password that was asked for.
    pub password: Option<String>,
}

/// What libpq or the server said.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PgError {
    /// The message, one line.
    pub message: String,
    /// Five characters of SQLSTATE, where the server sent an error.
    pub sqlstate: Option<String>,
}

/// An open connection.
pub struct Connection {
    libpq: &'static Libpq,
    raw: NonNull<PGconn>,
}

// SAFETY: libpq allows a connection to be used by any one thread at a time; `&mut self` sees to that.
unsafe impl Send for Connection {}

/// A connection attempt that failed.
#[derive(Debug)]
pub struct ConnectError {
    /// What libpq said.
    pub error: PgError,
    /// The server wants a password and none was given.
    pub needs_password: bool,
}

impl Connection {
    /// Connects for physical replication.
    pub fn connect(options: &ConnectOptions) -> Result<Connection, ConnectError> {
        let fail = |message: String| ConnectError {
            error: PgError { message, sqlstate: None },
            needs_password: false,
        };
        let libpq = libpq().map_err(fail)?;
        let settings = settings(options).map_err(fail)?;
        let mut owned = Vec::with_capacity(settings.len());
        for (keyword, value) in &settings {
            let keyword =
                CString::new(keyword.as_str()).map_err(|_| fail("NUL in a connection option".to_owned()))?;
            let value =
                CString::new(value.as_str()).map_err(|_| fail("NUL in a connection option".to_owned()))?;
            owned.push((keyword, value));
        }
        let mut keywords: Vec<*const c_char> = owned.iter().map(|(keyword, _)| keyword.as_ptr()).collect();
        let mut values: Vec<*const c_char> = owned.iter().map(|(_, value)| value.as_ptr()).collect();
        keywords.push(ptr::null());
        values.push(ptr::null());
        // SAFETY: both arrays end with NULL and point to strings that outlive the call.
        let raw = unsafe { (libpq.connectdb_params)(keywords.as_ptr(), values.as_ptr(), 0) };
        let raw = NonNull::new(raw).ok_or_else(|| fail("libpq has no memory for a connection".to_owned()))?;
        let connection = Connection { libpq, raw };
        // SAFETY: the connection is valid.
        if unsafe { (libpq.status)(raw.as_ptr()) } != CONNECTION_OK {
            // SAFETY: the connection is valid.
            let needs_password = unsafe { (libpq.connection_needs_password)(raw.as_ptr()) } != 0;
            return Err(ConnectError { error: connection.last_error(), needs_password });
        }
        // SAFETY: the connection is valid and the receiver has the right type.
        unsafe { (libpq.set_notice_receiver)(raw.as_ptr(), Some(log_notice), ptr::null_mut()) };
        Ok(connection)
    }

    /// The server's version as a number, such as 150020.
    pub fn server_version(&self) -> i32 {
        // SAFETY: the connection is valid.
        unsafe { (self.libpq.server_version)(self.raw.as_ptr()) }
    }

    /// The process that serves this connection.
    pub fn server_pid(&self) -> i32 {
        // SAFETY: the connection is valid.
        unsafe { (self.libpq.backend_pid)(self.raw.as_ptr()) }
    }

    /// A setting that the server reports by itself.
    pub fn parameter(&self, name: &CStr) -> Option<String> {
        // SAFETY: the connection is valid, the name NUL-terminated; the answer lives as long as the connection.
        let value = unsafe { (self.libpq.parameter_status)(self.raw.as_ptr(), name.as_ptr()) };
        // SAFETY: not NULL, NUL-terminated.
        (!value.is_null()).then(|| unsafe { CStr::from_ptr(value) }.to_string_lossy().into_owned())
    }

    /// Runs one command to its end and gives its rows.
    pub fn query(&mut self, command: &str) -> Result<Vec<Vec<Option<String>>>, PgError> {
        self.send(command)?;
        let mut rows = Vec::new();
        loop {
            match self.next_answer()? {
                Answer::Rows(more) => rows.extend(more),
                Answer::Done => return Ok(rows),
                Answer::CopyOut => return Err(plain("the server began to copy where it should answer")),
            }
        }
    }

    /// The one value that a command answers with.
    pub fn query_value(&mut self, command: &str) -> Result<String, PgError> {
        let rows = self.query(command)?;
        let value = rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
        value.ok_or_else(|| plain(&format!("the server has no answer to \"{command}\"")))
    }

    /// Sends a command; its answers follow by [`Connection::next_answer`].
    pub fn send(&mut self, command: &str) -> Result<(), PgError> {
        let text = CString::new(command).map_err(|_| plain("NUL in a command"))?;
        // SAFETY: the connection is valid, the text NUL-terminated.
        match unsafe { (self.libpq.send_query)(self.raw.as_ptr(), text.as_ptr()) } {
            1 => Ok(()),
            _ => Err(self.last_error()),
        }
    }

    /// The next answer to the command sent. Blocks.
    pub fn next_answer(&mut self) -> Result<Answer, PgError> {
        // SAFETY: the connection is valid.
        let Some(raw) = NonNull::new(unsafe { (self.libpq.get_result)(self.raw.as_ptr()) }) else {
            return Ok(Answer::Done);
        };
        let result = PgResult { libpq: self.libpq, raw };
        // SAFETY: the result is valid.
        match unsafe { (self.libpq.result_status)(raw.as_ptr()) } {
            PGRES_TUPLES_OK => Ok(Answer::Rows(result.rows())),
            PGRES_COMMAND_OK => Ok(Answer::Rows(Vec::new())),
            PGRES_COPY_OUT => Ok(Answer::CopyOut),
            _ => Err(result.error()),
        }
    }

    /// The next message of a copy; `None` at its end. Blocks.
    pub fn copy_data(&mut self) -> Result<Option<CopyData>, PgError> {
        let mut buffer: *mut c_char = ptr::null_mut();
        // SAFETY: the connection is valid; libpq allocates the buffer that it gives back.
        let length = unsafe { (self.libpq.get_copy_data)(self.raw.as_ptr(), &raw mut buffer, 0) };
        match (usize::try_from(length), NonNull::new(buffer)) {
            (Ok(length), Some(raw)) => Ok(Some(CopyData { libpq: self.libpq, raw: raw.cast(), length })),
            _ if length == -1 => Ok(None),
            _ => Err(self.last_error()),
        }
    }

    fn last_error(&self) -> PgError {
        // SAFETY: the connection is valid; the text lives until the next call and is copied here.
        let text = unsafe { CStr::from_ptr((self.libpq.error_message)(self.raw.as_ptr())) };
        plain(&text.to_string_lossy())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: finished once, here.
        unsafe { (self.libpq.finish)(self.raw.as_ptr()) };
    }
}

/// An answer to a command.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Rows of a result; none for a command without any.
    Rows(Vec<Vec<Option<String>>>),
    /// Messages follow by [`Connection::copy_data`].
    CopyOut,
    /// The command is over.
    Done,
}

/// One message of a copy, in libpq's memory.
pub struct CopyData {
    libpq: &'static Libpq,
    raw: NonNull<u8>,
    length: usize,
}

// SAFETY: the buffer belongs to this value alone.
unsafe impl Send for CopyData {}

impl AsRef<[u8]> for CopyData {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl std::ops::Deref for CopyData {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: libpq gave this many bytes, and they live until PQfreemem.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr(), self.length) }
    }
}

impl Drop for CopyData {
    fn drop(&mut self) {
        // SAFETY: freed once, by the allocator that made it.
        unsafe { (self.libpq.freemem)(self.raw.as_ptr().cast::<c_void>()) };
    }
}

struct PgResult {
    libpq: &'static Libpq,
    raw: NonNull<PGresult>,
}

impl PgResult {
    fn rows(&self) -> Vec<Vec<Option<String>>> {
        let (libpq, raw) = (self.libpq, self.raw.as_ptr());
        // SAFETY: the result is valid; rows and columns stay within what it says; values are NUL-terminated.
        unsafe {
            let columns = (libpq.nfields)(raw);
            let value = |row, column| {
                ((libpq.getisnull)(raw, row, column) == 0).then(|| {
                    CStr::from_ptr((libpq.getvalue)(raw, row, column)).to_string_lossy().into_owned()
                })
            };
            (0..(libpq.ntuples)(raw))
                .map(|row| (0..columns).map(|column| value(row, column)).collect())
                .collect()
        }
    }

    fn error(&self) -> PgError {
        // SAFETY: the result is valid; the text lives as long as it does.
        let text = unsafe { CStr::from_ptr((self.libpq.result_error_message)(self.raw.as_ptr())) };
        // SAFETY: as above.
        let sqlstate = unsafe { diagnostic(self.libpq, self.raw.as_ptr(), DIAG_SQLSTATE) };
        PgError { sqlstate, ..plain(&text.to_string_lossy()) }
    }
}

impl Drop for PgResult {
    fn drop(&mut self) {
        // SAFETY: cleared once, here.
        unsafe { (self.libpq.clear)(self.raw.as_ptr()) };
    }
}

/// # Safety
/// The result must be valid.
unsafe fn diagnostic(libpq: &Libpq, result: *const PGresult, field: c_int) -> Option<String> {
    // SAFETY: the caller's promise.
    let text = unsafe { (libpq.result_error_field)(result, field) };
    // SAFETY: not NULL, NUL-terminated, copied before the result goes.
    (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}

/// Passes the server's notices on to the log.
unsafe extern "C" fn log_notice(_: *mut c_void, result: *const PGresult) {
    // It is libpq that calls this.
    let Ok(libpq) = libpq() else { return };
    // SAFETY: libpq calls this with a valid result.
    let (severity, message) =
        unsafe { (diagnostic(libpq, result, DIAG_SEVERITY), diagnostic(libpq, result, DIAG_MESSAGE)) };
    let message = message.unwrap_or_default();
    match severity.as_deref() {
        Some("WARNING") => tracing::warn!("the server warns: {message}"),
        _ => tracing::info!("the server says: {message}"),
    }
}

fn plain(message: &str) -> PgError {
    let message = message.split_whitespace().collect::<Vec<_>>().join(" ");
    PgError { message, sqlstate: None }
}

/// What libpq is given, in pg_basebackup's order (streamutil.c: `GetConnection`): later settings beat earlier ones.
fn settings(options: &ConnectOptions) -> Result<Vec<(String, String)>, String> {
    let mut settings = match &options.connection_string {
        Some(text) => parse_connection_string(text)?,
        None => Vec::new(),
    };
    let timeout_given = std::env::var_os("PGCONNECT_TIMEOUT").is_some()
        || settings.iter().any(|(keyword, _)| keyword == "connect_timeout" || keyword == "service");
    let mut set = |keyword: &str, value: &str| settings.push((keyword.to_owned(), value.to_owned()));
    set("dbname", "replication");
    set("replication", "true");
    set("fallback_application_name", "zenith_push");
    if !timeout_given {
        set("connect_timeout", CONNECT_TIMEOUT);
    }
    for (keyword, value) in [
        ("host", &options.host),
        ("port", &options.port),
        ("user", &options.user),
        ("password", &options.password),
    ] {
        if let Some(value) = value {
            set(keyword, value);
        }
    }
    Ok(settings)
}

/// The options of a connection string or URI that are set, the database name aside.
fn parse_connection_string(text: &str) -> Result<Vec<(String, String)>, String> {
    let libpq = libpq()?;
    let c_text = CString::new(text).map_err(|_| "NUL in the connection string".to_owned())?;
    let mut error: *mut c_char = ptr::null_mut();
    // SAFETY: the text is NUL-terminated; libpq allocates both results.
    let options = unsafe { (libpq.conninfo_parse)(c_text.as_ptr(), &raw mut error) };
    if options.is_null() {
        let message = if error.is_null() {
            "libpq has no memory".to_owned()
        } else {
            // SAFETY: not NULL, NUL-terminated; freed once.
            unsafe {
                let message = CStr::from_ptr(error).to_string_lossy().trim().to_owned();
                (libpq.freemem)(error.cast());
                message
            }
        };
        return Err(format!("-d takes a connection string such as \"host=db user=backup\": {message}"));
    }
    let mut found = Vec::new();
    // SAFETY: the array ends with an option without a keyword; it is freed once, after the last use.
    unsafe {
        let mut option = options;
        while !(*option).keyword.is_null() {
            let keyword = CStr::from_ptr((*option).keyword).to_string_lossy().into_owned();
            if !(*option).val.is_null() && keyword != "dbname" {
                found.push((keyword, CStr::from_ptr((*option).val).to_string_lossy().into_owned()));
            }
            option = option.add(1);
        }
        (libpq.conninfo_free)(options);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value<'a>(settings: &'a [(String, String)], keyword: &str) -> Option<&'a str> {
        settings.iter().rev().find(|(k, _)| k == keyword).map(|(_, value)| value.as_str())
    }

    #[test]
    fn options_beat_the_connection_string_and_its_database_is_not_used() {
        let options = ConnectOptions {
            connection_string: Some("host=a port=1 dbname=x sslmode=require".to_owned()),
            host: Some("b".to_owned()),
            ..ConnectOptions::default()
        };
        let settings = settings(&options).expect("valid");
        assert_eq!(value(&settings, "host"), Some("b"));
        assert_eq!(value(&settings, "port"), Some("1"));
        assert_eq!(value(&settings, "sslmode"), Some("require"));
        assert_eq!(value(&settings, "dbname"), Some("replication"));
        assert_eq!(value(&settings, "replication"), Some("true"));
    }

    #[test]
    fn a_malformed_connection_string_is_explained() {
        let options =
            ConnectOptions { connection_string: Some("mydb".to_owned()), ..ConnectOptions::default() };
        let error = settings(&options).expect_err("malformed");
        assert!(error.contains("connection string"), "{error}");
    }

    #[test]
    fn a_server_that_is_not_there_is_an_error_that_names_where_it_was_looked_for() {
        let folder = tempfile::tempdir().expect("folder");
        let host = folder.path().display().to_string();
        let options = ConnectOptions { host: Some(host.clone()), ..ConnectOptions::default() };
        let failed = Connection::connect(&options).err().expect("nobody listens");
        assert!(failed.error.message.contains(&host), "{}", failed.error);
        assert!(!failed.needs_password);
    }
}
