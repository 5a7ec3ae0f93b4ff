//! Data directories written by the restore are started by a stock server and judged by PostgreSQL's own tools.

#[path = "restore_directory/directory.rs"]
mod directory;

use directory::StoppedDirectory;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_pgformat::backup_label::BackupLabel;
use zenith_pgformat::control::{ControlFile, DbState};
use zenith_pgformat::history::{self, History};
use zenith_pgformat::page;
use zenith_pgformat::rel::RelFile;
use zenith_pgformat::two_phase;
use zenith_pgformat::wal::{RmgrId, StreamStart, WalStream};
use zenith_pgformat::wal_name::WalFile;
use zenith_testkit::pg::{Pg, PgOptions, StopMode, bin_dir, command, run, server_dir, server_user};
use zenith_tools::restore::config::ThisHost;
use zenith_tools::restore::layout::Owner;
use zenith_tools::restore::tablespaces::TablespaceMapping;
use zenith_tools::restore::{Options, Report, write_directory};

const WORKLOAD: &str = "
CREATE EXTENSION amcheck;
CREATE TABLE t (id int PRIMARY KEY, name text, tags int[], at point);
INSERT INTO t SELECT i, 'name ' || i, ARRAY[i, i % 7], point(i, -i) FROM generate_series(1, 5000) i;
CREATE INDEX ON t USING gin (tags);
CREATE INDEX ON t USING gist (at);
CREATE INDEX ON t USING hash (name);
CREATE INDEX ON t USING brin (id);
CREATE INDEX ON t USING spgist (name);
INSERT INTO t SELECT i, repeat(md5(i::text), 300), '{}', NULL FROM generate_series(6001, 6040) i;
DELETE FROM t WHERE id % 5 = 0;
VACUUM t;
CREATE SEQUENCE s; SELECT nextval('s') FROM generate_series(1, 40);
CREATE UNLOGGED TABLE u (id int PRIMARY KEY, x text); INSERT INTO u VALUES (1, 'gone after a restore');
CREATE TABLE locked (id int PRIMARY KEY, x int); INSERT INTO locked VALUES (1, 1);
BEGIN; SELECT 1 FROM locked FOR KEY SHARE; SAVEPOINT a; UPDATE locked SET x = 2; COMMIT;
SELECT pg_replication_origin_create('far');
SELECT pg_replication_origin_advance('far', '0/1234568');
";

/// Where the restored directory of a test goes, and what goes with it.
fn options(target: &Path) -> Options {
    let library = run(command(bin_dir().join("pg_config")).arg("--pkglibdir"));
    Options {
        target: target.to_owned(),
        tablespaces: Vec::new(),
        owner: server_user().map(|(uid, gid)| Owner { uid, gid }),
        sync: false,
        parallel: 8,
        tli: None,
        reason: "restored by a test".to_owned(),
        archive_command: None,
        lazy: None,
        host: Arc::new(ThisHost::new(Some(PathBuf::from(library.trim())))),
        now: 1_700_000_000,
    }
}

async fn restore(source: &StoppedDirectory, options: &Options) -> (Pg, Report) {
    let home = server_dir();
    restore_into(home, source, options).await
}

async fn restore_into(home: TempDir, source: &StoppedDirectory, options: &Options) -> (Pg, Report) {
    let data = home.path().join("data");
    let options = Options { target: data.clone(), ..options.clone() };
    let report = write_directory(source, &options, &|_| {}).await.expect("restored");
    (Pg::adopt(home, data), report)
}

/// A dump without what may differ: the keys of `\restrict`, and the locations of tablespaces, which are mapped.
fn dump(pg: &Pg) -> String {
    let text = run(pg.client("pg_dumpall").arg("--no-unlogged-table-data"));
    text.lines()
        .filter(|line| !line.contains("restrict ") && !line.starts_with("CREATE TABLESPACE"))
        .collect::<Vec<_>>()
        .join("\n")
}

fn tool(program: &str, data: &Path) -> String {
    run(command(bin_dir().join(program)).arg("-D").arg(data))
}

/// All records that pg_waldump finds from the start of a fabricated segment on; it must come to the zeros behind them.
fn waldump(pg: &Pg, report: &Report, size: u64) -> String {
    let start = Lsn(report.lsn.0 / size * size);
    let mut dump = command(bin_dir().join("pg_waldump"));
    dump.arg("-p").arg(pg.data().join("pg_wal")).arg("-t").arg(report.tli.to_string());
    let output = dump.args(["-s", &start.to_string()]).output().expect("pg_waldump");
    let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(complaint.contains("wanted 24, got 0"), "{complaint}");
    String::from_utf8(output.stdout).expect("text")
}

fn control(pg: &Pg) -> ControlFile {
    ControlFile::decode(&std::fs::read(pg.data().join("global/pg_control")).expect("pg_control"))
        .expect("valid")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_cluster_holds_everything_and_survives_a_crash() {
    let options_of = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("max_prepared_transactions = 5")
        .conf("track_commit_timestamp = on")
        .conf("archive_mode = on")
        .conf("archive_command = 'true'")
        .conf("synchronous_standby_names = ''")
        .conf("shared_preload_libraries = 'zenith_no_such_library'");
    let primary = Pg::create(&options_of);
    primary.configure(&["shared_preload_libraries = ''"]);
    primary.start();
    let space = primary.home().join("space");
    std::fs::create_dir(&space).expect("directory");
    zenith_testkit::pg::give_to_server(&space);
    primary.sql(&format!("CREATE TABLESPACE far LOCATION '{}'", space.display()));
    primary.sql("CREATE DATABASE other");
    primary.script("postgres", WORKLOAD);
    primary.script(
        "other",
        "CREATE EXTENSION amcheck; CREATE TABLE f (id int PRIMARY KEY) TABLESPACE far; INSERT INTO f SELECT generate_series(1, 2000);",
    );
    primary.script("postgres", "BEGIN; INSERT INTO locked VALUES (7, 7); PREPARE TRANSACTION 'later';");
    let commit_time = primary.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE id = 1");
    let dumped = dump(&primary);
    primary.stop(StopMode::Fast);
    primary.configure(&["shared_preload_libraries = 'zenith_no_such_library'"]);

    let home = server_dir();
    let moved = home.path().join("moved");
    let mapping =
        TablespaceMapping::parse(&format!("{}={}", space.display(), moved.display())).expect("valid");
    let source = StoppedDirectory::open(primary.data()).expect("stopped cleanly");
    let options = Options { tablespaces: vec![mapping], ..options(primary.data()) };
    let (pg, report) = restore_into(home, &source, &options).await;

    assert_eq!((report.parent_tli, report.tli, report.prepared), (1, 2, 1));
    let changed: Vec<&str> = report.changes.iter().map(|change| change.setting.as_str()).collect();
    for setting in ["archive_mode", "archive_command", "shared_preload_libraries"] {
        assert!(changed.contains(&setting), "{setting} in {changed:?}");
    }
    let restored = control(&pg);
    assert_eq!(restored.state, DbState::Shutdowned);
    assert_eq!(restored.checkpoint, report.checkpoint);
    assert!(tool("pg_controldata", pg.data()).contains("Latest checkpoint's PrevTimeLineID:   1"));
    assert!(tool("pg_checksums", pg.data()).contains("Bad checksums:  0"));
    let records = waldump(&pg, &report, source.control().wal_segment_size.bytes());
    assert!(
        records
            .lines()
            .last()
            .is_some_and(|line| line.contains("CHECKPOINT_SHUTDOWN") && line.contains("tli 2; prev tli 1")),
        "{records}"
    );
    assert!(records.lines().count() > 1, "the parent's records are readable too: {records}");
    let mode = std::fs::metadata(pg.data()).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);

    pg.start();
    assert_eq!(dump(&pg), dumped);
    assert_eq!(pg.sql("SELECT count(*) FROM u"), "0", "unlogged relations are reset");
    assert_eq!(pg.sql("SELECT pg_xact_commit_timestamp(xmin) FROM t WHERE id = 1"), commit_time);
    assert_eq!(pg.sql("SELECT remote_lsn FROM pg_replication_origin_status"), "0/1234568");
    assert_eq!(pg.sql("SELECT gid FROM pg_prepared_xacts"), "later");
    assert_eq!(pg.sql("SELECT timeline_id FROM pg_control_checkpoint()"), "2");
    pg.sql("COMMIT PREPARED 'later'");
    pg.sql("INSERT INTO u VALUES (2, 'x')");
    pg.script("other", "INSERT INTO f SELECT generate_series(3000, 4000);");
    pg.script("postgres", "INSERT INTO t SELECT i, 'new', NULL, NULL FROM generate_series(10001, 12000) i; SELECT pg_switch_wal();");
    pg.stop(StopMode::Immediate);
    pg.start();
    assert_eq!(pg.sql("SELECT count(*) FROM t WHERE id > 10000"), "2000");
    assert_eq!(pg.sql("SELECT x FROM locked WHERE id = 7"), "7");
    assert_eq!(pg.sql_in("other", "SELECT count(*) FROM f"), "3001");
    run(pg.client("pg_amcheck").args(["--all", "--heapallindexed", "--no-dependent-toast"]));
    pg.sql("VACUUM FREEZE");
    pg.stop(StopMode::Fast);
    assert!(tool("pg_checksums", pg.data()).contains("Bad checksums:  0"));
    assert!(std::fs::read_dir(&moved).expect("mapped").next().is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_anywhere_in_a_page_or_segment_starts_and_recovers() {
    let primary = Pg::start_new(&PgOptions::default().initdb("--wal-segsize=1").conf("max_wal_senders = 0"));
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    primary.stop(StopMode::Fast);
    let end = StoppedDirectory::open(primary.data()).expect("stopped cleanly").lsn().0;
    let page = end.next_multiple_of(8192) + 8192;
    let segment = end.next_multiple_of(1 << 20) + (1 << 20);
    let mut two_segments = 0;
    // Inside a page, between pages, so late that the record or its header crosses, and the same at a segment's end.
    for fork in
        [page + 1000, page, page - 8, page - 64, page + 56, segment, segment - 8, segment - 96, segment + 72]
    {
        let fork = Lsn(fork & !7);
        let source =
            StoppedDirectory::open(primary.data()).expect("stopped cleanly").padded_to(fork).expect("padded");
        let (pg, report) = restore(&source, &options(primary.data())).await;
        let records = waldump(&pg, &report, 1 << 20);
        assert!(
            records.contains(&format!("CHECKPOINT_SHUTDOWN redo {}; tli 2; prev tli 1", report.checkpoint)),
            "{fork}: {records}"
        );
        // A segment that the checkpoint filled is archived; the one that the server goes on in is not.
        let names = |directory: &str, ending: &str| {
            let found = std::fs::read_dir(pg.data().join(directory)).expect("there");
            let names = found.map(|entry| entry.expect("entry").file_name().to_string_lossy().into_owned());
            let mut names: Vec<String> = names
                .filter_map(|name| name.strip_suffix(ending).map(str::to_owned))
                .filter(|name| name.len() == 24)
                .collect();
            names.sort();
            names
        };
        let (mut filled, ready) = (names("pg_wal", ""), names("pg_wal/archive_status", ".ready"));
        two_segments += filled.len() - 1;
        filled.pop();
        assert_eq!(ready, filled, "{fork}");
        pg.start();
        pg.sql("INSERT INTO t SELECT generate_series(101, 3000)");
        pg.stop(StopMode::Immediate);
        pg.start();
        assert_eq!(pg.sql("SELECT count(*) FROM t"), "3000", "{fork}");
        pg.stop(StopMode::Fast);
    }
    assert!(two_segments > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_recovery_of_the_parents_base_follows_the_fork() {
    let primary = Pg::start_new(&PgOptions::default().initdb("--wal-segsize=1").conf("wal_keep_size = 1GB"));
    let home = server_dir();
    let data = home.path().join("data");
    run(primary.client("pg_basebackup").args(["-X", "none", "-c", "fast", "--no-sync", "-D"]).arg(&data));
    let label = std::fs::read(data.join("backup_label")).expect("a backup label");
    let parsed = BackupLabel::parse(&label).expect("PostgreSQL wrote it");
    assert_eq!(parsed.format().as_bytes(), label, "byte for byte");
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    primary.stop(StopMode::Fast);
    let source = StoppedDirectory::open(primary.data()).expect("stopped cleanly");
    let (fork, _) = restore(&source, &options(primary.data())).await;
    fork.start();
    fork.sql("INSERT INTO t SELECT generate_series(101, 200)");
    fork.sql("SELECT pg_switch_wal()");
    fork.stop(StopMode::Fast);

    let archive = home.path().join("archive");
    std::fs::create_dir(&archive).expect("directory");
    for wal in [primary.data().join("pg_wal"), fork.data().join("pg_wal")] {
        for entry in std::fs::read_dir(wal).expect("pg_wal") {
            let path = entry.expect("entry").path();
            if path.is_file() {
                std::fs::copy(&path, archive.join(path.file_name().expect("name"))).expect("copied");
            }
        }
    }
    run(std::process::Command::new("chmod").arg("-R").arg("a+rX").arg(&archive));
    let pg = Pg::adopt(home, data);
    pg.configure(&[
        &format!("restore_command = 'cp {}/%f %p'", archive.display()),
        "recovery_target_timeline = 'latest'",
    ]);
    std::fs::write(pg.data().join("recovery.signal"), "").expect("signal");
    pg.start();
    pg.wait_for("NOT pg_is_in_recovery()");
    assert_eq!(pg.sql("SELECT count(*) FROM t"), "200");

    let read = |name: &str| std::fs::read(pg.data().join("pg_wal").join(name)).expect("a history file");
    let (ours, stock) = (read("00000002.history"), read("00000003.history"));
    let history = History::parse(3, &stock).expect("PostgreSQL wrote it");
    assert_eq!(history.switch_point(1), Some(source.lsn()));
    let again = history::child_file(&ours, 2, history.begin(), "no recovery target specified");
    assert_eq!(again, stock, "byte for byte");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restored_server_can_be_restored_again_with_its_parents_history() {
    let primary =
        Pg::start_new(&PgOptions::default().initdb("--wal-segsize=1").initdb("--allow-group-access"));
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 100) AS id");
    primary.stop(StopMode::Fast);
    let source = StoppedDirectory::open(primary.data()).expect("stopped cleanly");
    let (child, first) = restore(&source, &options(primary.data())).await;
    child.start();
    child.sql("INSERT INTO t VALUES (101)");
    child.stop(StopMode::Fast);
    let source = StoppedDirectory::open(child.data()).expect("stopped cleanly");
    let (grandchild, second) = restore(&source, &options(child.data())).await;
    assert_eq!((first.tli, second.parent_tli, second.tli), (2, 2, 3));
    let wal = grandchild.data().join("pg_wal");
    let history = std::fs::read_to_string(wal.join("00000003.history")).expect("own history");
    let lines: Vec<&str> = history.lines().filter(|line| !line.is_empty()).collect();
    assert_eq!(lines[0], format!("1\t{}\trestored by a test", first.lsn));
    assert_eq!(lines[1], format!("2\t{}\trestored by a test", second.lsn));
    assert!(
        wal.join("00000002.history").exists() && wal.join("archive_status/00000002.history.done").exists()
    );
    assert!(wal.join("archive_status/00000003.history.ready").exists());
    let mode = |path: &str| {
        std::fs::metadata(grandchild.data().join(path)).expect("there").permissions().mode() & 0o777
    };
    assert_eq!((mode(""), mode("base"), mode("PG_VERSION")), (0o750, 0o750, 0o640), "group access is kept");
    grandchild.start();
    assert_eq!(grandchild.sql("SELECT count(*) FROM t"), "101");
    assert_eq!(grandchild.sql("SHOW data_directory_mode"), "0750");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_in_use_is_refused_and_untouched() {
    let primary = Pg::start_new(&PgOptions::default().initdb("--wal-segsize=1"));
    primary.stop(StopMode::Fast);
    let source = StoppedDirectory::open(primary.data()).expect("stopped cleanly");
    let error = write_directory(&source, &options(primary.data()), &|_| {}).await.expect_err("in use");
    assert!(error.to_string().contains("not empty"), "{error}");
    primary.start();
}

#[tokio::test(flavor = "multi_thread")]
async fn our_reading_of_every_page_and_of_the_control_file_is_postgresqls() {
    let primary = Pg::start_new(&PgOptions::default().initdb("--data-checksums").initdb("--wal-segsize=1"));
    primary.script("postgres", WORKLOAD);
    primary.stop(StopMode::Fast);
    let bytes = std::fs::read(primary.data().join("global/pg_control")).expect("pg_control");
    let control = ControlFile::decode(&bytes).expect("valid");
    assert_eq!(control.encode(), bytes, "byte for byte");
    let printed = tool("pg_controldata", primary.data());
    for value in [
        control.system_identifier.to_string(),
        control.checkpoint.to_string(),
        control.state.describe().to_owned(),
    ] {
        assert!(printed.contains(&value), "{value}");
    }
    let mut pages = 0;
    let mut directories = vec![primary.data().to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).expect("directory") {
            let path = entry.expect("entry").path();
            if path.is_dir() {
                directories.push(path);
                continue;
            }
            let name = path.strip_prefix(primary.data()).expect("below").to_string_lossy().into_owned();
            let Some(file) = RelFile::parse(&name) else { continue };
            let content = std::fs::read(&path).expect("readable");
            for (bytes, block) in content.chunks(8192).zip(file.first_block()..) {
                let mut page: zenith_pgformat::Page = bytes.try_into().expect("whole pages");
                assert_eq!(page::verify(&page, block, true), Ok(()), "{name}");
                if !page::is_new(&page) {
                    page[8..10].fill(0);
                    page::set_checksum(&mut page, block);
                }
                assert_eq!(page[..], bytes[..], "{name} block {block}");
                pages += 1;
            }
        }
    }
    assert!(pages > 1000, "{pages} pages");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prepare_record_gives_the_file_that_postgresql_writes() {
    let primary = Pg::start_new(&PgOptions::default().conf("max_prepared_transactions = 5"));
    primary.sql("CREATE TABLE t (id int)");
    let start: Lsn = primary.sql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN");
    primary.script(
        "postgres",
        "BEGIN; INSERT INTO t VALUES (1); SAVEPOINT a; INSERT INTO t VALUES (2); SAVEPOINT b; INSERT INTO t VALUES (3); \
         CREATE TABLE made (id int); DROP TABLE t; PREPARE TRANSACTION 'later';",
    );
    primary.stop(StopMode::Fast);
    let source = StoppedDirectory::open(primary.data()).expect("stopped cleanly");
    let size = source.control().wal_segment_size;
    let segment = size.segment_of(start);
    let name = WalFile::Segment { tli: 1, segment }.name(size);
    let bytes = std::fs::read(primary.data().join("pg_wal").join(name)).expect("a segment");
    let mut stream = WalStream::new(StreamStart {
        lsn: start,
        prev: Lsn::INVALID,
        tli: 1,
        seg_size: size,
        system_identifier: source.control().system_identifier,
    });
    stream.feed(size.start_of(segment), bytes.into()).expect("the right segment");
    let prepare = loop {
        let record = stream.next().expect("valid WAL").expect("a PREPARE record comes");
        if record.rmgr == RmgrId::XACT && record.info & 0x70 == 0x10 {
            break record;
        }
    };
    let made = two_phase::file_from_prepare(&prepare.main_data).expect("valid");
    let header = two_phase::decode(&made).expect("valid");
    let stock = std::fs::read(primary.data().join("pg_twophase").join(two_phase::file_name(header.xid)));
    assert_eq!(made, stock.expect("a state file"), "byte for byte");
    assert_eq!((header.gid.as_str(), header.subxacts.len()), ("later", 2));
}
