//! The extension's settings.

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use std::time::Duration;

static READER_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(60);
static FILL: GucSetting<bool> = GucSetting::<bool>::new(true);
static FILL_RATE: GucSetting<i32> = GucSetting::<i32>::new(100);

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
    GucRegistry::define_bool_guc(
        c"zenith.fill",
        c"Whether all pages are fetched in the background.",
        c"When all are here, neither the library nor the page service is needed any more.",
        &FILL,
        GucContext::Sighup,
        GucFlags::empty(),
    );
    GucRegistry::define_int_guc(
        c"zenith.fill_rate",
        c"How much is fetched in the background in a second, at most.",
        c"0 means as much as can be.",
        &FILL_RATE,
        0,
        1 << 20,
        GucContext::Sighup,
        GucFlags::UNIT_MB,
    );
}

/// Whether the filler fills.
pub(crate) fn fill() -> bool {
    FILL.get()
}

/// Bytes that the filler fetches in a second at most, if that is limited.
pub(crate) fn fill_rate() -> Option<u64> {
    u64::try_from(FILL_RATE.get()).ok().filter(|rate| *rate > 0).map(|rate| rate << 20)
}

/// How long a page is waited for.
pub(crate) fn reader_timeout() -> Duration {
    Duration::from_secs(READER_TIMEOUT.get().unsigned_abs().into())
}
