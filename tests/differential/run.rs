//! One run: workload, archive, slice, and the comparison at each LSN.

use crate::files;
use crate::oracle::Oracle;
use crate::primary::Primary;
use crate::restarts;
use crate::suites::Ran;
use crate::wal::{Archived, Type};
use std::collections::BTreeMap;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal::RmgrId;
use zenith_testkit::mask::compare_directories;
use zenith_testkit::oracle::{dump, insert_lsn, plain_copy, wal_segment_size};
use zenith_testkit::pg::{PgOptions, StopMode};

/// What is run and compared.
pub(crate) struct Run {
    /// Its name in the figures.
    name: &'static str,
    /// The primary's.
    options: PgOptions,
    /// At how many LSNs it is compared.
    lsns: usize,
    /// Before the primary's first start.
    before_start: fn(&Primary),
    /// Before the base image.
    before_base: fn(&Primary),
    /// Whether `zenith check --wal` goes over it too.
    checked: bool,
}

impl Run {
    /// A run that begins with an empty cluster.
    pub(crate) fn new(name: &'static str, options: PgOptions, lsns: usize) -> Run {
        Run { name, options, lsns, before_start: |_| {}, before_base: |_| {}, checked: false }
    }

    /// Does something before the primary's first start.
    pub(crate) fn before_start(self, before_start: fn(&Primary)) -> Run {
        Run { before_start, ..self }
    }

    /// Does something before the base image is taken.
    pub(crate) fn before_base(self, before_base: fn(&Primary)) -> Run {
        Run { before_base, ..self }
    }

    /// Has `zenith check --wal` go over it too.
    pub(crate) fn checked(self) -> Run {
        Run { checked: true, ..self }
    }
}

/// What a run compared.
#[derive(Default)]
pub(crate) struct Figures {
    cases: usize,
    unexpected: usize,
    records: usize,
    by_rmgr: BTreeMap<RmgrId, usize>,
    by_type: BTreeMap<Type, usize>,
    wal_bytes: u64,
    lsns: usize,
    files: usize,
    pages: usize,
    slru_pages: usize,
    dumps: usize,
    /// What `zenith check --wal` said.
    check: Option<serde_json::Value>,
}

impl Figures {
    /// Records of one resource manager.
    pub(crate) fn records_of(&self, rmgr: RmgrId) -> usize {
        self.by_rmgr.get(&rmgr).copied().unwrap_or(0)
    }

    /// Records of one type, as `pg_waldump` names it.
    pub(crate) fn records_of_type(&self, rmgr: RmgrId, name: &'static str) -> usize {
        self.by_type.get(&(rmgr, name)).copied().unwrap_or(0)
    }
}

/// Runs a workload on an archived primary, slices, and compares at LSNs spread over its records.
///
/// With `ZENITH_DIFFERENTIAL_KEEP` set, what differs is left in place: the store, the archive, and the two directories
/// of each LSN.
pub(crate) fn differential(run: Run, workload: impl FnOnce(&Primary) -> Ran) -> Figures {
    let options = PgOptions::default().conf("checkpoint_timeout = 30s").conf("max_connections = 60");
    // Cases turn it on for a session; recovery that ends while such a tablespace exists needs it too.
    let mut options = options.conf("allow_in_place_tablespaces = on");
    options.conf.extend(run.options.conf);
    let options = PgOptions { conf: options.conf, ..run.options };
    let primary = Primary::create(options);
    (run.before_start)(&primary);
    primary.server.start();
    (run.before_base)(&primary);
    println!("{}", primary.zenith("zenith_push", &["base", "--checkpoint=fast"]));
    let mut oracle = Oracle::new(plain_copy(&primary.server, &[]), primary.plain());
    let from = insert_lsn(&primary.server);
    let ran = workload(&primary);
    // A shutdown waits for the archiver, and not for ever.
    primary.archive();
    restarts::with_transactions_open(&primary);
    let to = insert_lsn(&primary.server);
    primary.archive();
    println!("{}", primary.zenith("zenith_slicedice", &[]));

    let archived = Archived::read(primary.plain(), wal_segment_size(&primary.server), from, to);
    let mut figures = Figures {
        cases: ran.cases,
        unexpected: ran.unexpected,
        records: archived.records(),
        by_rmgr: archived.by_rmgr.clone(),
        by_type: archived.by_type(),
        wal_bytes: archived.bytes,
        ..Figures::default()
    };
    let mut different = Vec::new();
    if run.checked {
        different.extend(check(&primary, &mut figures));
    }
    for (index, (lsn, why)) in archived.moments(run.lsns).into_iter().enumerate() {
        let dumped = index + 1 == run.lsns || index % 5 == 0;
        println!("{lsn}, {why}");
        different.extend(compare_at(&primary, &mut oracle, lsn, dumped, &mut figures));
    }
    report(run.name, &figures, different.len());
    if !different.is_empty() && keep() {
        eprintln!("store {}, archive {}", primary.store().display(), primary.plain().display());
        primary.server.stop(StopMode::Immediate);
        std::mem::forget(primary);
    }
    assert!(different.is_empty(), "{} differences:\n{}", different.len(), different.join("\n"));
    figures
}

/// What `zenith check --wal` finds: every record redone whole and as it is stored, beside the images that the server
/// logged for checking and beside what is read back.
fn check(primary: &Primary, figures: &mut Figures) -> Vec<String> {
    let said = primary.check_wal();
    println!("zenith check --wal: {said:#}");
    let differences = said["differences"].as_u64().expect("a number of differences");
    let none = Vec::new();
    let listed = said["first"].as_array().unwrap_or(&none).iter();
    let mut found: Vec<String> = listed.map(|difference| format!("check: {difference}")).collect();
    if differences > found.len() as u64 {
        found.push(format!("check: {differences} in all"));
    }
    figures.check = Some(said);
    found
}

/// Whether what differs is left in place.
fn keep() -> bool {
    std::env::var_os("ZENITH_DIFFERENTIAL_KEEP").is_some()
}

/// What differs at one LSN.
fn compare_at(
    primary: &Primary,
    oracle: &mut Oracle,
    lsn: Lsn,
    dumped: bool,
    figures: &mut Figures,
) -> Vec<String> {
    let (ours, theirs) = std::thread::scope(|scope| {
        let restoring = scope.spawn(|| primary.restore(lsn));
        let theirs = oracle.at(lsn);
        (restoring.join().expect("restored"), theirs)
    });
    let mut different = files::differences(ours.data(), theirs.data());
    match compare_directories(ours.data(), theirs.data()) {
        Ok(compared) => {
            figures.files += compared.files;
            figures.pages += compared.pages;
        }
        Err(differences) => different.extend(differences),
    }
    figures.lsns += 1;
    figures.slru_pages += files::slru_pages(ours.data());
    if dumped {
        figures.dumps += 1;
        ours.start();
        theirs.start();
        // Two recoveries of the same WAL agree in sequences too.
        if dump(&ours, &[]) != dump(&theirs, &[]) {
            different.push("the dumps differ".to_owned());
        }
    }
    println!("{lsn}: {} differences, {} pages so far", different.len(), figures.pages);
    let kept = format!("{lsn} ({} and {})", ours.data().display(), theirs.data().display());
    if !different.is_empty() && keep() {
        for server in [ours, theirs] {
            if dumped {
                server.stop(StopMode::Fast);
            }
            std::mem::forget(server);
        }
    }
    different.into_iter().map(|line| format!("{kept}: {line}")).collect()
}

/// The figures as JSON, printed and beside the build.
fn report(name: &str, figures: &Figures, differences: usize) {
    let by_rmgr = figures.by_rmgr.iter().map(|(rmgr, count)| (rmgr.to_string(), (*count).into()));
    let json = serde_json::json!({
        "workload": name,
        "cases": figures.cases,
        "unexpected_output": figures.unexpected,
        "records": figures.records,
        "record_types": figures.by_type.len(),
        "records_by_resource_manager": serde_json::Map::from_iter(by_rmgr),
        "wal_bytes": figures.wal_bytes,
        "lsns": figures.lsns,
        "files": figures.files,
        "pages": figures.pages,
        "slru_pages": figures.slru_pages,
        "dumps": figures.dumps,
        "check_wal": figures.check,
        "differences": differences,
    });
    println!("{json:#}");
    let test = std::env::current_exe().expect("own path");
    let target = test.ancestors().nth(3).expect("target directory");
    let folder = target.join("differential");
    std::fs::create_dir_all(&folder).expect("a folder beside the build");
    let file = folder.join(name.replace(", ", " ").replace(' ', "-")).with_extension("json");
    std::fs::write(file, format!("{json:#}\n")).expect("figures");
}
