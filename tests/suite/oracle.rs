//! PostgreSQL's own point-in-time recovery of a plain copy of the primary, from the plain archive.

use crate::harness::Chain;
use std::path::{Path, PathBuf};
use tempfile::TempDir;
use zenith_testkit::mask::{Compared, compare_directories};
pub(crate) use zenith_testkit::oracle::moved;
use zenith_testkit::oracle::plain_copy;
use zenith_testkit::pg::{self, Pg};

/// A plain copy of the primary, never started itself: each recovery takes a copy of it.
pub(crate) struct Backup {
    home: TempDir,
}

impl Backup {
    /// `pg_basebackup` of the running primary, with the tablespaces at these places.
    pub(crate) fn take(chain: &Chain, tablespaces: &[&Path]) -> Backup {
        Backup { home: plain_copy(&chain.primary, tablespaces) }
    }

    /// A copy of it in a directory of its own.
    fn copy(&self) -> (TempDir, PathBuf) {
        let home = pg::server_dir();
        let everything = format!("{}/.", self.home.path().display());
        pg::run(pg::command("cp").args(["-a", "--reflink=auto"]).arg(everything).arg(home.path()));
        let data = home.path().join("data");
        for link in std::fs::read_dir(data.join("pg_tblspc")).expect("pg_tblspc") {
            let link = link.expect("an entry").path();
            let place = std::fs::read_link(&link).expect("a link");
            let own = home.path().join(place.file_name().expect("a name"));
            pg::run(pg::command("ln").arg("-sfn").arg(own).arg(&link));
        }
        (home, data)
    }

    /// PostgreSQL's own recovery to a target, promoted and running. It can reach the store as the primary does.
    pub(crate) fn recover(&self, chain: &Chain, target: &[&str]) -> Pg {
        let (home, data) = self.copy();
        pg::run(pg::command("touch").arg(data.join("recovery.signal")));
        let oracle = Pg::adopt(home, data).with_env(chain.store.credentials());
        let restore = format!("restore_command = 'cp {}/%f %p'", chain.plain().display());
        oracle.configure(&[
            &restore,
            "archive_mode = off",
            "hot_standby = off",
            "autovacuum = off",
            "recovery_target_action = promote",
        ]);
        oracle.configure(target);
        oracle.start();
        oracle.wait_until_it_answers();
        oracle
    }
}

/// Every page of two stopped servers, masked.
pub(crate) fn compare(ours: &Pg, theirs: &Pg) -> Compared {
    match compare_directories(ours.data(), theirs.data()) {
        Ok(compared) => compared,
        Err(differences) => panic!("{} differences:\n{}", differences.len(), differences.join("\n")),
    }
}
