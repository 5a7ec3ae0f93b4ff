//! Moments of a primary's life, each with a target in Zenith's words and in PostgreSQL's.

use crate::verify::dump;
use zenith_testkit::pg::Pg;

/// How a moment is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// By LSN, where a record ends.
    Lsn,
    /// By an LSN inside of the record that follows: it is not in.
    LsnInsideARecord,
    /// By the name of a restore point.
    Name,
    /// By time.
    Time,
}

/// What the primary was at one moment.
pub(crate) struct Moment {
    /// For people.
    pub(crate) label: String,
    /// Options of `zenith_restore`.
    pub(crate) target: [String; 2],
    /// The same in PostgreSQL's words.
    pub(crate) recovery: Vec<String>,
    /// `pg_dumpall` of the primary, if it was quiet.
    pub(crate) dump: Option<String>,
}

impl Moment {
    /// This moment. If the primary is quiet, nothing changes before this returns.
    pub(crate) fn now(primary: &Pg, step: u32, quiet: bool) -> Moment {
        let kind = match step % 6 {
            0 => Kind::Lsn,
            3 => Kind::LsnInsideARecord,
            1 | 4 => Kind::Name,
            _ => Kind::Time,
        };
        let writing = primary
            .sql("SELECT count(backend_xid) FROM pg_stat_activity WHERE backend_type = 'client backend'");
        assert_eq!(writing == "0", quiet, "{writing} clients write at moment {step}");
        let (option, value, recovery) = choose(primary, kind, step);
        let dump = quiet.then(|| dump(primary));
        if quiet && kind == Kind::Time {
            // By time is up to the first later commit. Sequences change without one, so it comes before they do.
            primary.sql("SELECT pg_current_xact_id()");
        }
        let is = if quiet { "quiet" } else { "not quiet" };
        let label = format!("moment {step}, {kind:?}, {is}: {option} {value}");
        Moment { label, target: [option.to_owned(), value], recovery, dump }
    }
}

fn choose(primary: &Pg, kind: Kind, step: u32) -> (&'static str, String, Vec<String>) {
    match kind {
        Kind::Lsn | Kind::LsnInsideARecord => {
            let inside = if kind == Kind::Lsn { 0 } else { 8 };
            let lsns =
                primary.sql(&format!("SELECT lsn, lsn + {inside} FROM pg_current_wal_insert_lsn() AS lsn"));
            let (boundary, lsn) = lsns.split_once('|').expect("two LSNs");
            let recovery = vec![
                format!("recovery_target_lsn = '{boundary}'"),
                // Inclusive, PostgreSQL replays the record that starts there, too.
                "recovery_target_inclusive = off".to_owned(),
            ];
            ("--lsn", lsn.to_owned(), recovery)
        }
        Kind::Name => {
            let name = format!("moment {step}");
            primary.sql(&format!("SELECT pg_create_restore_point('{name}')"));
            let recovery = vec![format!("recovery_target_name = '{name}'")];
            ("--name", name, recovery)
        }
        Kind::Time => {
            let time = primary.sql("SELECT clock_timestamp()");
            let recovery = vec![format!("recovery_target_time = '{time}'")];
            ("--time", time, recovery)
        }
    }
}
