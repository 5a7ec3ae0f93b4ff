//! Small tests of what seeds have found.

use crate::plan::Plan;
use crate::primary::{Archiving, Primary};
use crate::settings::Settings;
use zenith_testkit::pg::{self, Pg};
use zenith_testkit::store::Kind;

/// A primary as seed 1 has it, but simpler.
fn simple() -> Primary {
    let settings =
        Settings { store: Kind::Folder, tablespace: false, counters: Vec::new(), ..Plan::of(1).settings };
    Primary::start(&settings, Archiving::Zenith)
}

fn restore(primary: &Primary) -> Pg {
    let home = pg::server_dir();
    let data = home.path().join("data");
    pg::run(primary.zenith("zenith_restore", &[]).arg("-D").arg(&data));
    Pg::adopt(home, data)
}

/// BASE_BACKUP with TABLESPACE_MAP leaves such a tablespace out, without a word.
#[test]
fn a_tablespace_inside_the_data_directory_comes_with_a_base_image() {
    let primary = simple();
    primary.server.sql("CREATE TABLESPACE inside LOCATION ''");
    primary.server.sql("CREATE TABLE t TABLESPACE inside AS SELECT generate_series(1, 1000) AS i");
    pg::run(&mut primary.zenith("zenith_push", &["base", "--checkpoint=fast"]));
    primary.archive();
    let restored = restore(&primary);
    restored.start();
    assert_eq!(restored.sql("SELECT count(*), sum(i) FROM t"), "1000|500500");
}
