//! What this data directory is of.

use pgrx::pg_sys;
use std::io::ErrorKind;
use std::sync::OnceLock;
use zenith_compute_dir::{COMPUTE, Compute, Reader};

static COMPUTE_OF: OnceLock<Compute> = OnceLock::new();

/// Reads it, in the postmaster, whose working directory is the data directory. `false`: the directory is not lazy.
///
/// # Errors
/// It is not for this server, or this server would lose its pages.
pub(crate) fn open() -> Result<bool, String> {
    let bytes = match std::fs::read(COMPUTE) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(format!("cannot read {COMPUTE}: {error}")),
    };
    let compute = Compute::decode(&bytes).map_err(|error| error.to_string())?;
    check(&compute)?;
    COMPUTE_OF.set(compute).map_err(|_| "loaded twice".to_owned())?;
    Ok(true)
}

/// The lazy directory of this server.
pub(crate) fn compute() -> Option<&'static Compute> {
    COMPUTE_OF.get()
}

fn check(compute: &Compute) -> Result<(), String> {
    let Compute { server_version_num: wanted, .. } = compute;
    let running = server_version_num();
    let built = pg_sys::PG_VERSION_NUM;
    if running != Some(built) {
        let running = running.map_or("unknown".to_owned(), |running| running.to_string());
        return Err(format!(
            "this library was built for server version {built}, and this server is {running}: install the library that \
             was built for it"
        ));
    }
    if *wanted != built {
        return Err(format!(
            "this data directory was restored for server version {wanted}, and this server is {built}: start it with that \
             one until it is filled, or restore it again"
        ));
    }
    if let Reader::Shared { host, .. } = &compute.reader
        && !host.starts_with('/')
    {
        return Err(format!("{COMPUTE} names the page service {host}: only sockets are known"));
    }
    // SAFETY: the postmaster has read the control file and its configuration.
    let (system, checksums, hints, images) = unsafe {
        (
            pg_sys::GetSystemIdentifier(),
            pg_sys::DataChecksumsEnabled(),
            pg_sys::wal_log_hints,
            pg_sys::fullPageWrites,
        )
    };
    if compute.system_identifier != system.to_string() {
        let of = &compute.system_identifier;
        return Err(format!(
            "{COMPUTE} is of the cluster with system identifier {of}, and this one has {system}: restore the directory anew"
        ));
    }
    if !images {
        return Err(
            "full_page_writes must be on until all pages are here: a page torn over a hole would be lost"
                .to_owned(),
        );
    }
    if !checksums && !hints {
        return Err(
            "wal_log_hints must be on until all pages are here: a page torn over a hole would be lost"
                .to_owned(),
        );
    }
    Ok(())
}

/// Keeps a reload from turning off what a torn page needs.
pub(crate) fn pin_full_page_writes() {
    // SAFETY: a setting that every server has; nothing that is read from a file overrides this.
    unsafe {
        pg_sys::SetConfigOption(
            c"full_page_writes".as_ptr(),
            c"on".as_ptr(),
            pg_sys::GucContext::PGC_POSTMASTER,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
}

fn server_version_num() -> Option<u32> {
    // SAFETY: a setting that every server has; its text lives until the next change of it, which there is none of.
    unsafe {
        let text = pg_sys::GetConfigOption(c"server_version_num".as_ptr(), true, false);
        if text.is_null() { None } else { std::ffi::CStr::from_ptr(text).to_str().ok()?.parse().ok() }
    }
}
