//! What a primary says of itself, for comparing with what Zenith makes of its WAL: a plain copy, the dump, where it is.

use crate::pg::{Pg, run, server_dir};
use std::path::Path;
use tempfile::TempDir;
use zenith_pgformat::Lsn;
use zenith_pgformat::wal_name::WalSegSize;

/// `pg_basebackup` of a running server into `data` below the answer, without WAL; its tablespaces, at these places, beside `data`
/// under their own names.
pub fn plain_copy(server: &Pg, tablespaces: &[&Path]) -> TempDir {
    let home = server_dir();
    let mut command = server.client("pg_basebackup");
    command.args(["-X", "none", "--checkpoint=fast", "--no-sync", "--no-manifest", "-D"]);
    command.arg(home.path().join("data"));
    for tablespace in tablespaces {
        command.arg("-T").arg(moved(tablespace, home.path()));
    }
    run(&mut command);
    home
}

/// `-T` for a tablespace that goes into `home` under the same name.
pub fn moved(tablespace: &Path, home: &Path) -> String {
    let name = tablespace.file_name().expect("a name");
    format!("{}={}", tablespace.display(), home.join(name).display())
}

/// Where the next record goes.
pub fn insert_lsn(server: &Pg) -> Lsn {
    server.sql("SELECT pg_current_wal_insert_lsn()").parse().expect("an LSN")
}

/// The size of a server's WAL segments.
pub fn wal_segment_size(server: &Pg) -> WalSegSize {
    let bytes = server.sql("SELECT setting FROM pg_settings WHERE name = 'wal_segment_size'");
    WalSegSize::new(bytes.parse().expect("bytes")).expect("a segment size")
}

/// `pg_dumpall` of a running server, with these options besides, without what is another at each call.
pub fn dump(server: &Pg, options: &[&str]) -> String {
    let mut dumpall = server.client("pg_dumpall");
    dumpall.args(["--no-unlogged-table-data", "-d", "dbname=postgres"]).args(options);
    let text = run(&mut dumpall);
    let lines =
        text.lines().filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"));
    lines.collect::<Vec<_>>().join("\n")
}

/// A dump without the places of tablespaces, which are others in each copy.
pub fn without_locations(dump: &str) -> String {
    let lines = dump.lines().map(|line| match line.split_once(" LOCATION '/") {
        Some((tablespace, _)) if line.starts_with("CREATE TABLESPACE ") => tablespace,
        _ => line,
    });
    lines.collect::<Vec<_>>().join("\n")
}
