//! What no suite of PostgreSQL's reaches, because each runs on a server that stays up: shutdowns and crashes while
//! transactions are open, in subtransactions and prepared.

use crate::primary::Primary;
use zenith_testkit::pg::StopMode;

/// Leaves a clean shutdown, a crash, a switch and checkpoints in the WAL, each with transactions open over it.
pub(crate) fn with_transactions_open(primary: &Primary) {
    let server = &primary.server;
    server.sql("CREATE TABLE held (id int PRIMARY KEY, n int)");
    server.sql("INSERT INTO held SELECT i, 0 FROM generate_series(1, 500) i");
    for (step, mode) in [StopMode::Fast, StopMode::Immediate].into_iter().enumerate() {
        server.script(
            "postgres",
            &format!(
                "BEGIN; UPDATE held SET n = n + 1 WHERE id % 10 = {step}; SAVEPOINT sub;
                 DELETE FROM held WHERE id % 10 = {step} + 5; CREATE TABLE kept{step} AS SELECT * FROM held;
                 PREPARE TRANSACTION 'kept{step}';"
            ),
        );
        let mut open = server.session("postgres");
        open.sql(
            "BEGIN; UPDATE held SET n = n + 1 WHERE id % 10 = 3; SAVEPOINT sub;
             CREATE TABLE lost AS SELECT * FROM held; INSERT INTO held SELECT i, 1 FROM generate_series(1000, 2000) i;
             CREATE INDEX ON lost (n)",
        );
        server.sql("CHECKPOINT");
        open.sql("TRUNCATE lost; INSERT INTO lost SELECT * FROM held");
        server.sql("SELECT pg_switch_wal()");
        open.sql("ROLLBACK TO sub; INSERT INTO held VALUES (3000, 3000)");
        server.stop(mode);
        drop(open);
        server.start();
        server.sql(&format!("COMMIT PREPARED 'kept{step}'"));
        server.sql("VACUUM held");
    }
}
