//! What Zenith restores beside what PostgreSQL's own recovery makes of a plain base backup.

use crate::files;
use crate::plan::{Moment, Plan};
use crate::primary::Primary;
use crate::wal::Archived;
use std::path::Path;
use std::process::Command;
use tempfile::TempDir;
use zenith_pgformat::page::PageHeader;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::{BLCKSZ, Lsn, Page};
use zenith_testkit::mask::{PageKind, compare_directories};
use zenith_testkit::oracle::{dump, without_locations};
use zenith_testkit::pg::{self, Pg, StopMode};

/// Bytes of a page's header.
const HEADER: usize = 24;
/// How far ahead of a sequence its WAL is (`SEQ_LOG_VALS`, commands/sequence.c).
const SEQUENCE_AHEAD: i64 = 32;

/// A moment in Zenith's words and in PostgreSQL's.
pub(crate) struct Target {
    restore: Vec<String>,
    recovery: Vec<String>,
    /// `None`: the end.
    lsn: Option<Lsn>,
}

impl Target {
    /// The target of a moment.
    pub(crate) fn of(moment: Moment, archived: &Archived, names: &[(String, Lsn)]) -> Target {
        match moment {
            Moment::End => Target { restore: Vec::new(), recovery: Vec::new(), lsn: None },
            Moment::Name(share) if !names.is_empty() => {
                let (name, lsn) = &names[(names.len() as f64 * share) as usize];
                Target {
                    restore: vec!["--name".to_owned(), name.clone()],
                    recovery: vec![format!("recovery_target_name = '{name}'")],
                    lsn: Some(*lsn),
                }
            }
            Moment::Record(share) | Moment::Name(share) => {
                let lsn = archived.at(share);
                Target {
                    restore: vec!["--lsn".to_owned(), lsn.to_string()],
                    recovery: vec![
                        format!("recovery_target_lsn = '{lsn}'"),
                        // Inclusive, PostgreSQL replays the record that starts there, too.
                        "recovery_target_inclusive = off".to_owned(),
                    ],
                    lsn: Some(lsn),
                }
            }
        }
    }

    /// For people.
    pub(crate) fn label(&self) -> String {
        if self.restore.is_empty() { "the end".to_owned() } else { self.restore.join(" ") }
    }
}

/// What was compared.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Compared {
    /// Moments.
    pub(crate) moments: usize,
    /// Pages.
    pub(crate) pages: usize,
    /// Files and directories without content that only one side has.
    pub(crate) leftovers: usize,
}

/// A plain base backup with the archive that follows it.
pub(crate) struct Oracle<'a> {
    /// The primary that it was taken of.
    pub(crate) primary: &'a Primary,
    /// Its plan.
    pub(crate) plan: &'a Plan,
    /// The plain base backup.
    pub(crate) base: &'a TempDir,
    /// The records of the run.
    pub(crate) archived: &'a Archived,
}

impl Oracle<'_> {
    /// PostgreSQL's own recovery to a target: promoted, and stopped.
    pub(crate) fn recover(&self, target: &Target) -> Pg {
        let (home, data) = self.copy();
        pg::run(pg::command("touch").arg(data.join("recovery.signal")));
        let server = Pg::adopt(home, data.clone());
        let settings =
            self.archived.settings_at(target.lsn.unwrap_or(Lsn(u64::MAX)), &self.plan.settings.changing);
        // What ALTER SYSTEM has written comes last and would count.
        pg::run(pg::command("rm").arg("-f").arg(data.join("postgresql.auto.conf")));
        let restore = format!("restore_command = 'cp {}/%f %p'", self.primary.plain().display());
        let mut lines = vec![&*restore];
        lines.extend([
            "archive_mode = off",
            "hot_standby = off",
            "autovacuum = off",
            "recovery_target_action = promote",
        ]);
        lines.extend(settings.iter().chain(&target.recovery).map(String::as_str));
        server.configure(&lines);
        let started = server.try_start();
        assert!(started.is_ok(), "PostgreSQL's own recovery to {}: {}", target.label(), server.log());
        wait_until_promoted(&server);
        server.stop(StopMode::Fast);
        server
    }

    fn copy(&self) -> (TempDir, std::path::PathBuf) {
        let home = pg::server_dir();
        let everything = format!("{}/.", self.base.path().display());
        pg::run(pg::command("cp").args(["-a", "--reflink=auto"]).arg(everything).arg(home.path()));
        let data = home.path().join("data");
        for entry in std::fs::read_dir(data.join("pg_tblspc")).expect("pg_tblspc").flatten() {
            if let Ok(place) = std::fs::read_link(entry.path()) {
                let own = home.path().join(place.file_name().expect("a name"));
                pg::run(pg::command("ln").arg("-sfn").arg(own).arg(entry.path()));
            }
        }
        (home, data)
    }

    /// The command that has Zenith restore a target into `data` below a directory.
    pub(crate) fn restore_command(&self, target: &Target, home: &TempDir) -> Command {
        let arguments: Vec<&str> = target.restore.iter().map(String::as_str).collect();
        let mut command = self.primary.zenith("zenith_restore", &arguments);
        command.arg("-D").arg(home.path().join("data")).args(self.primary.mapping(home.path()));
        command
    }

    /// What Zenith makes of a target.
    pub(crate) fn restore(&self, target: &Target) -> Pg {
        let home = pg::server_dir();
        let data = home.path().join("data");
        pg::run(&mut self.restore_command(target, &home));
        Pg::adopt(home, data)
    }

    /// What differs between two stopped servers.
    pub(crate) fn compare(&self, ours: &Pg, theirs: &Pg, compared: &mut Compared) -> Vec<String> {
        let (ours, theirs) = (ours.data(), theirs.data());
        compared.moments += 1;
        let mut different = files::differences(ours, theirs);
        different.retain(|line| {
            let leftover =
                is_leftover(ours, line) || is_empty_directory(theirs, line) || self.is_emptied(ours, line);
            compared.leftovers += usize::from(leftover);
            !leftover
        });
        compared.pages += pages(ours) + files::slru_pages(ours);
        if let Err(lines) = compare_directories(ours, theirs) {
            let same = lines.len();
            different.extend(
                lines
                    .into_iter()
                    .filter(|line| !is_same_sequence(ours, theirs, line) && !self.is_emptied(ours, line)),
            );
            // It stops at so many, and what comes after them it has not seen.
            assert!(same < 50 || !different.is_empty(), "too many sequences");
        }
        if self.plan.settings.checksums {
            let checked =
                pg::command(pg::bin_dir().join("pg_checksums")).args(["--check", "-D"]).arg(ours).output();
            let checked = checked.expect("pg_checksums exists");
            if !checked.status.success() {
                different.push(format!("pg_checksums: {}", String::from_utf8_lossy(&checked.stderr)));
            }
        }
        different
    }

    /// Whether a line is about a file of a relation whose transaction was rolled back shortly before a crash: the server
    /// empties the file at once, and its word for it, which nobody waits for, is lost. Then the file is empty on the
    /// primary too, which a later base image was taken of, and full where the WAL is all there is.
    fn is_emptied(&self, ours: &Path, line: &str) -> bool {
        let name = line.split_once(" block ").map(|(name, _)| name);
        let Some(name) = name.or_else(|| line.strip_suffix(" exists only there")) else { return false };
        let unfinished = RelFile::parse(name).is_some_and(|file| self.archived.is_unfinished(file.node));
        let is_empty = |root: &Path| std::fs::metadata(root.join(name)).map_or(0, |file| file.len()) == 0;
        unfinished && is_empty(ours) && is_empty(self.primary.server.data())
    }

    /// What differs in the dumps of two servers, which are started for it; what was prepared comes to its end first.
    pub(crate) fn compare_dumps(&self, ours: &Pg, theirs: &Pg) -> Vec<String> {
        let [ours, theirs] = [ours, theirs].map(|server| {
            server.start();
            let how = if self.plan.commit_prepared { "COMMIT" } else { "ROLLBACK" };
            let prepared = server.sql("SELECT gid, database FROM pg_prepared_xacts ORDER BY gid");
            for (gid, database) in prepared.lines().filter_map(|line| line.split_once('|')) {
                server.sql_in(database, &format!("{how} PREPARED '{gid}'"));
            }
            let dump = without_locations(&dump(server, &["--lock-wait-timeout=20000"]));
            format!("{prepared}\n{dump}")
        });
        let (mut ours, mut theirs) = (ours.lines(), theirs.lines());
        loop {
            match (ours.next(), theirs.next()) {
                (None, None) => return Vec::new(),
                (Some(our), Some(their)) if our == their || sequences_agree(our, their) => {}
                (our, their) => {
                    return vec![format!(
                        "the dumps differ: {:?} and {:?}",
                        shortened(our),
                        shortened(their)
                    )];
                }
            }
        }
    }
}

fn shortened(line: Option<&str>) -> Option<String> {
    line.map(|line| line.chars().take(300).collect())
}

/// Pages of relations below a data directory.
fn pages(data: &Path) -> usize {
    let mut below = vec![data.to_path_buf()];
    let mut pages = 0;
    while let Some(directory) = below.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let (path, Ok(metadata)) = (entry.path(), entry.metadata()) else { continue };
            if metadata.is_dir() {
                below.push(path);
            } else if path
                .strip_prefix(data)
                .is_ok_and(|name| RelFile::parse(&name.to_string_lossy()).is_some())
            {
                pages += metadata.len() as usize / BLCKSZ;
            }
        }
    }
    pages
}

/// Waits for the end of recovery by what the postmaster writes (miscinit.c, `PM_STATUS_READY`): a connection reads catalogs and
/// prunes their pages.
fn wait_until_promoted(server: &Pg) {
    let looks = "for i in $(seq 6000); do grep -q '^ready' \"$0\" && exit 0; [ -e \"$0\" ] || exit 1; sleep 0.05; done; exit 1";
    let waited = pg::command("sh").args(["-c", looks]).arg(server.data().join("postmaster.pid")).status();
    assert!(waited.expect("sh exists").success(), "PostgreSQL's own recovery ended:\n{}", server.log());
}

/// Whether a line of [`files::differences`] is about a file without content that only Zenith's directory has. A server
/// leaves such files: of a relation whose creation a crash undid before its record was written, or whose drop was committed
/// just before a base image began; and a visibility map is made and extended without a record. A base image that is
/// taken later than the plain one holds them.
fn is_leftover(ours: &Path, line: &str) -> bool {
    let Some(name) = line.strip_suffix(" exists only here") else { return false };
    let is_relation = RelFile::parse(name).is_some();
    let header = if name.contains("_vm") { HEADER } else { 0 };
    is_relation
        && std::fs::read(ours.join(name)).is_ok_and(|bytes| {
            bytes.chunks(BLCKSZ).all(|page| page.iter().skip(header).all(|byte| *byte == 0))
        })
}

/// Whether a line of [`files::differences`] is about a database's directory in a tablespace in which nothing lies any more. Who needs
/// it makes it (`TablespaceCreateDbspace`, commands/tablespace.c).
fn is_empty_directory(theirs: &Path, line: &str) -> bool {
    let directory = line.strip_prefix("directory ").and_then(|line| line.strip_suffix(" exists only there"));
    let Some(directory) = directory.filter(|directory| directory.starts_with("pg_tblspc/")) else {
        return false;
    };
    std::fs::read_dir(theirs.join(directory)).is_ok_and(|mut entries| entries.next().is_none())
}

/// Whether a line of [`compare_directories`] is about a sequence whose page a base image has as it was on the server:
/// WAL has it up to 32 values ahead, and the server's own page counts how many of them are left.
fn is_same_sequence(ours: &Path, theirs: &Path, line: &str) -> bool {
    let Some((name, _)) = line.split_once(" block 0: ") else { return false };
    let ends =
        [ours, theirs].map(|root| std::fs::read(root.join(name)).ok().and_then(|bytes| last_logged(&bytes)));
    matches!(ends, [Some(ours), Some(theirs)] if ours == theirs)
}

/// The value that a sequence's page says is logged (commands/sequence.h, `FormData_pg_sequence_data`: `last_value`,
/// `log_cnt`, `is_called` behind a tuple header of 24 bytes).
fn last_logged(bytes: &[u8]) -> Option<i64> {
    let page: &Page = bytes.get(..BLCKSZ)?.try_into().ok()?;
    if PageKind::guess(page) != PageKind::Sequence {
        return None;
    }
    let tuple = usize::from(PageHeader::decode(page).upper) + 24;
    let number = |at: usize| Some(i64::from_le_bytes(page.get(at..at + 8)?.try_into().ok()?));
    Some(number(tuple)? + number(tuple + 8)?)
}

/// `SELECT pg_catalog.setval('public.q0', 65, true);`
fn sequence_value(line: &str) -> Option<(&str, i64)> {
    let (name, value) = line.strip_prefix("SELECT pg_catalog.setval(")?.split_once(", ")?;
    Some((name, value.split_once(',')?.0.parse().ok()?))
}

fn sequences_agree(ours: &str, theirs: &str) -> bool {
    match (sequence_value(ours), sequence_value(theirs)) {
        (Some((our_name, our)), Some((their_name, their))) => {
            our_name == their_name && (our - their).abs() <= SEQUENCE_AHEAD
        }
        _ => false,
    }
}
