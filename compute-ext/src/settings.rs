//! The extension's settings.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::time::Duration;

static READER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60);

pub(crate) fn define() {
    GucRegistry::define_int_guc(
        c"zenith.reader_timeout",
        c"How long a query waits for a page that the page service does not give.",
        c"While the service cannot be reached, or cannot read its store, queries that need a page wait.",
        &READER_TIMEOUT,
        1,
        86_400,
        GucContext::Suset,
        GucFlags::UNIT_S,
    );
}

/// How long a page is waited for.
pub(crate) fn reader_timeout() -> Duration {
    Duration::from_secs(READER_TIMEOUT.get().unsigned_abs().into())
}
