//! libpq's functions, loaded when the first connection is made. Linked, the library would bring two dozen others (TLS,
//! Kerberos, LDAP) into every process, and `archive_command` starts one for each segment without ever using it.

use libloading::Library;
use std::ffi::{c_char, c_int, c_void};
use std::sync::OnceLock;

/// The name of the library, which has been the same since PostgreSQL 8.2.
const LIBRARY: &str = "libpq.so.5";

/// `PGconn`, libpq-fe.h.
#[repr(C)]
pub(super) struct PGconn {
    _opaque: [u8; 0],
}

/// `PGresult`, libpq-fe.h.
#[repr(C)]
pub(super) struct PGresult {
    _opaque: [u8; 0],
}

/// `PQconninfoOption`, libpq-fe.h.
#[repr(C)]
pub(super) struct PQconninfoOption {
    pub(super) keyword: *mut c_char,
    pub(super) envvar: *mut c_char,
    pub(super) compiled: *mut c_char,
    pub(super) val: *mut c_char,
    pub(super) label: *mut c_char,
    pub(super) dispchar: *mut c_char,
    pub(super) dispsize: c_int,
}

/// `PQnoticeReceiver`, libpq-fe.h.
pub(super) type NoticeReceiver = unsafe extern "C" fn(*mut c_void, *const PGresult);

/// `CONNECTION_OK` of `ConnStatusType`, libpq-fe.h.
pub(super) const CONNECTION_OK: c_int = 0;
/// `PGRES_COMMAND_OK` of `ExecStatusType`, libpq-fe.h.
pub(super) const PGRES_COMMAND_OK: c_int = 1;
/// `PGRES_TUPLES_OK`.
pub(super) const PGRES_TUPLES_OK: c_int = 2;
/// `PGRES_COPY_OUT`.
pub(super) const PGRES_COPY_OUT: c_int = 3;

macro_rules! functions {
    ($(fn $field:ident = $name:literal ($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions, named as libpq-fe.h does without its prefix.
        pub(super) struct Libpq {
            $(pub(super) $field: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
            /// The functions live as long as it is loaded.
            _library: Library,
        }

        impl Libpq {
            fn load() -> Result<Libpq, libloading::Error> {
                // SAFETY: libpq's initialisers have no requirements.
                let library = unsafe { Library::new(LIBRARY)? };
                Ok(Libpq {
                    // SAFETY: the signatures are those of libpq-fe.h.
                    $($field: unsafe { *library.get(concat!($name, "\0").as_bytes())? },)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    fn connectdb_params = "PQconnectdbParams"(*const *const c_char, *const *const c_char, c_int) -> *mut PGconn;
    fn finish = "PQfinish"(*mut PGconn);
    fn status = "PQstatus"(*const PGconn) -> c_int;
    fn connection_needs_password = "PQconnectionNeedsPassword"(*const PGconn) -> c_int;
    fn error_message = "PQerrorMessage"(*const PGconn) -> *mut c_char;
    fn server_version = "PQserverVersion"(*const PGconn) -> c_int;
    fn backend_pid = "PQbackendPID"(*const PGconn) -> c_int;
    fn parameter_status = "PQparameterStatus"(*const PGconn, *const c_char) -> *const c_char;
    fn set_notice_receiver = "PQsetNoticeReceiver"(*mut PGconn, Option<NoticeReceiver>, *mut c_void) -> Option<NoticeReceiver>;
    fn send_query = "PQsendQuery"(*mut PGconn, *const c_char) -> c_int;
    fn get_result = "PQgetResult"(*mut PGconn) -> *mut PGresult;
    fn get_copy_data = "PQgetCopyData"(*mut PGconn, *mut *mut c_char, c_int) -> c_int;
    fn result_status = "PQresultStatus"(*const PGresult) -> c_int;
    fn result_error_message = "PQresultErrorMessage"(*const PGresult) -> *mut c_char;
    fn result_error_field = "PQresultErrorField"(*const PGresult, c_int) -> *mut c_char;
    fn ntuples = "PQntuples"(*const PGresult) -> c_int;
    fn nfields = "PQnfields"(*const PGresult) -> c_int;
    fn getisnull = "PQgetisnull"(*const PGresult, c_int, c_int) -> c_int;
    fn getvalue = "PQgetvalue"(*const PGresult, c_int, c_int) -> *mut c_char;
    fn clear = "PQclear"(*mut PGresult);
    fn freemem = "PQfreemem"(*mut c_void);
    fn conninfo_parse = "PQconninfoParse"(*const c_char, *mut *mut c_char) -> *mut PQconninfoOption;
    fn conninfo_free = "PQconninfoFree"(*mut PQconninfoOption);
}

/// The functions, loaded once; an error says what to install.
pub(super) fn libpq() -> Result<&'static Libpq, String> {
    static LOADED: OnceLock<Result<Libpq, String>> = OnceLock::new();
    let loaded = LOADED.get_or_init(|| {
        Libpq::load().map_err(|error| {
            format!("{LIBRARY}, PostgreSQL's client library, cannot be loaded ({error}): install it (libpq5 of Debian and Ubuntu)")
        })
    });
    loaded.as_ref().map_err(Clone::clone)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_function_is_in_the_library() {
        assert!(libpq().is_ok(), "{:?}", libpq().err());
    }
}
