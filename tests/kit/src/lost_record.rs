//! A crash of the primary in the middle of a record, made to happen.

use crate::pg::{self, Pg, StopMode};
use std::path::Path;

/// The server crashes and loses the end of a record whose beginning is archived; started again, it writes something else
/// there (`XLOG_OVERWRITE_CONTRECORD`). The name of the segment that begins with it, not archived yet.
///
/// The server archives and has segments of 1 MB; while this runs nothing else writes, and no checkpoint is made: one
/// behind what is lost could not be recovered from.
pub fn lose_the_end_of_a_record(server: &Pg) -> String {
    // From wherever the server is to the middle of the second segment after that.
    server.sql(
        "SELECT pg_logical_emit_message(true, 'lost', repeat('x',
           2621440 - ((pg_current_wal_insert_lsn() - '0/0') % 1048576)::int))",
    );
    let lost = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn())");
    let kept = server.sql("SELECT pg_walfile_name(pg_current_wal_insert_lsn() - 1048576)");
    // With that the archiver has done all it can do: the crash meets it idle.
    server.wait_for(&format!("(SELECT coalesce(last_archived_wal, '') >= '{kept}' FROM pg_stat_archiver)"));
    server.stop(StopMode::Immediate);
    let wal = server.data().join("pg_wal");
    for entry in std::fs::read_dir(&wal).expect("pg_wal") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.len() == lost.len() && name >= lost {
            std::fs::remove_file(entry.path()).expect("a segment");
        }
    }
    server.start();
    assert!(begins_with_an_overwritten_record(&wal.join(&lost)), "{lost}\n{}", server.log());
    lost
}

/// Whether the first record of a segment says that the rest of another was lost there.
pub fn begins_with_an_overwritten_record(segment: &Path) -> bool {
    let first = pg::run(pg::command(pg::bin_dir().join("pg_waldump")).arg("--limit=1").arg(segment));
    first.contains("desc: OVERWRITE_CONTRECORD")
}
