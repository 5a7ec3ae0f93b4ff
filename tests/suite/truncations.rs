//! A crash right behind truncations of pg_xact, pg_multixact and pg_commit_ts. Redo repeats them, but of pg_xact it leaves
//! the oldest transaction where it was (`clog_redo`, clog.c): the server goes on with a checkpoint that names a
//! transaction whose status is gone, and so does every base image that is taken of it.

use crate::files;
use crate::harness::{Chain, TestStore};
use crate::oracle::{Backup, compare};
use crate::verify::{dump, same_dump, tools_accept};
use std::collections::BTreeSet;
use std::path::Path;
use zenith_testkit::pg::{self, Pg, PgOptions, StopMode};

/// The first transaction whose status lies in the second segment of pg_xact: 32 pages of 32768. A segment of
/// pg_commit_ts, 32 pages of 819, begins 256 before.
const SECOND_SEGMENT: u32 = 32 * 32_768;

/// Before the first start: transactions, multixacts and their members are about to need another segment.
fn near_the_end_of_segments(primary: &Pg) {
    // 32 pages of 2048 multixacts, 32 pages of 1636 members.
    let (next_multi, next_offset) = (32 * 2_048 - 40, 32 * 1_636 - 40);
    let mut reset = pg::command(pg::bin_dir().join("pg_resetwal"));
    reset.arg(format!("--next-transaction-id={}", SECOND_SEGMENT - 500));
    reset.arg(format!("--multixact-ids={next_multi},1")).arg(format!("--multixact-offset={next_offset}"));
    pg::run(reset.arg("-D").arg(primary.data()));
    for directory in ["pg_xact", "pg_multixact/offsets", "pg_multixact/members"] {
        let segment = primary.data().join(directory).join("0000");
        let file = std::fs::File::options().write(true).open(segment).expect("initdb has made it");
        file.set_len(32 * 8_192).expect("it grows");
    }
}

/// Transactions, subtransactions and multixacts over the ends of those segments.
const OVER_THE_END: &str = "
    CREATE TABLE locked AS SELECT i AS id, 0 AS n FROM generate_series(1, 50) i;
    DO $$ BEGIN FOR i IN 1..400 LOOP
      PERFORM FROM locked WHERE id = i % 50 + 1 FOR KEY SHARE;
      BEGIN UPDATE locked SET n = n + 1 WHERE id = i % 50 + 1;
        IF i % 7 = 0 THEN RAISE 'undone'; END IF;
      EXCEPTION WHEN raise_exception THEN NULL; END;
      COMMIT;
    END LOOP; END $$;";

fn names(directory: &Path) -> BTreeSet<String> {
    let listed = std::fs::read_dir(directory).expect("a directory");
    listed.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// Asserts that everything of the first segments is gone, though pg_control names a transaction of them.
#[track_caller]
fn names_a_transaction_whose_status_is_gone(primary: &Pg) {
    for (directory, segment) in [
        ("pg_xact", "0001"),
        ("pg_commit_ts", "0028"),
        ("pg_multixact/offsets", "0001"),
        ("pg_multixact/members", "0001"),
    ] {
        assert_eq!(
            names(&primary.data().join(directory)),
            BTreeSet::from([segment.to_owned()]),
            "{directory}"
        );
    }
    let oldest = "SELECT oldest_xid::text::bigint FROM pg_control_checkpoint()";
    let oldest: u32 = primary.sql(oldest).parse().expect("a transaction id");
    assert!(oldest < SECOND_SEGMENT, "{oldest}");
}

fn insert(server: &Pg, name: &str) {
    server.sql(&format!("INSERT INTO t SELECT i, '{name}' FROM generate_series(1, 100) i"));
    server.sql(&format!("SELECT pg_create_restore_point('{name}')"));
}

/// Archives every segment for the timeline `late`, too, from this one on.
fn archive_for_late(chain: &Chain, first: &str) {
    chain.archive();
    for segment in
        names(chain.plain()).iter().filter(|name| name.len() == first.len() && name.as_str() >= first)
    {
        let path = chain.plain().join(segment).display().to_string();
        chain.run("zenith_push", &["wal", "--timeline", "late", &path]);
    }
}

/// What a timeline has at a restore point is what PostgreSQL's recovery of this copy makes there; it can be frozen anew
/// and crashes.
fn as_postgresql_recovers(chain: &Chain, backup: &Backup, timeline: &str, name: &str) {
    let restored = chain.restore(&["--timeline", timeline, "--name", name]);
    tools_accept(&restored);
    let oracle = backup.recover(chain, &[&format!("recovery_target_name = '{name}'")]);
    oracle.stop(StopMode::Fast);
    assert!(compare(&restored, &oracle).pages > 500);
    assert_eq!(files::differences(restored.data(), oracle.data()), Vec::<String>::new(), "{name}");
    assert_eq!(files::slru_pages(restored.data()), files::slru_pages(oracle.data()));
    for server in [&restored, &oracle] {
        server.start();
    }
    same_dump(&dump(&restored), &dump(&oracle));
    let times = "SELECT string_agg(pg_xact_commit_timestamp(xmin)::text, ',' ORDER BY xmin::text) FROM t";
    assert_eq!(restored.sql(times), oracle.sql(times));
    for _ in 0..2 {
        pg::run(restored.client("vacuumdb").args(["--all", "--freeze", "--quiet"]));
        restored.stop(StopMode::Immediate);
        restored.start();
    }
    assert_eq!(dump(&restored), dump(&oracle));
}

#[test]
fn a_base_image_of_a_server_that_crashed_right_behind_a_truncation_is_restored_as_postgresql_recovers() {
    let options = PgOptions::default()
        .initdb("--data-checksums")
        .initdb("--wal-segsize=1")
        .conf("autovacuum = off")
        .conf("checkpoint_timeout = 1h")
        .conf("track_commit_timestamp = on");
    let chain = Chain::create(TestStore::folder(), None, options);
    let primary = &chain.primary;
    near_the_end_of_segments(primary);
    primary.start();
    primary.sql("CREATE TABLE t (i int, v text)");
    primary.sql("ALTER DATABASE template0 ALLOW_CONNECTIONS true");
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    let before = Backup::take(&chain, &[]);

    primary.script("postgres", OVER_THE_END);
    pg::run(primary.client("vacuumdb").args(["--all", "--freeze", "--quiet"]));
    primary.stop(StopMode::Immediate);
    primary.start();
    names_a_transaction_whose_status_is_gone(primary);
    insert(primary, "behind the crash");
    let first = primary.sql("SELECT pg_walfile_name(pg_switch_wal())");
    // One into the history that has the truncations, one that knows only what the server says of itself now.
    chain.run("zenith_push", &["base", "--checkpoint=fast"]);
    chain.run("zenith_push", &["base", "--timeline", "late", "--create", "--checkpoint=fast"]);
    let after = Backup::take(&chain, &[]);
    names_a_transaction_whose_status_is_gone(primary);
    insert(primary, "behind the base image");
    archive_for_late(&chain, &first);
    for timeline in ["main", "late"] {
        chain.run("zenith_slicedice", &["--timeline", timeline]);
    }

    as_postgresql_recovers(&chain, &before, "main", "behind the crash");
    for timeline in ["main", "late"] {
        as_postgresql_recovers(&chain, &after, timeline, "behind the base image");
    }
}
