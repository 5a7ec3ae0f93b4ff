//! A cluster as Debian makes it: configuration below /etc, data below /var/lib, the environment in a file of its own.

use crate::harness::{archive, zenith_bin};
use crate::verify::{dump, goes_on_after_a_crash, same_dump_as_of_the_primary, tools_accept};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use tempfile::TempDir;
use zenith_testkit::pg::{self, Pg};
use zenith_testkit::store::TestStore;

const MAJOR: &str = "15";

/// Making and dropping clusters: to drop one removes directories that it shares with others, if they are empty.
static SHARED_DIRECTORIES: Mutex<()> = Mutex::new(());

/// A cluster of pg_createcluster's, gone when dropped. It listens in a directory of its own only.
struct DebianCluster {
    name: String,
    /// Where its configuration lies and what else is not in /etc, /var/lib and /var/log: only for a test that is not
    /// run as root.
    own: Option<TempDir>,
    server: Pg,
}

impl DebianCluster {
    fn create() -> DebianCluster {
        let id = zenith_store::Env::system().ids.fresh().simple().to_string();
        let name = format!("zenith_test_{id}");
        let own = pg::server_user().is_none().then(pg::server_dir);
        let data = match &own {
            Some(own) => own.path().join("data"),
            None => PathBuf::from("/var/lib/postgresql").join(MAJOR).join(&name),
        };
        let superuser = pg::run(pg::command("id").arg("-un"));
        let server = Pg::adopt(pg::server_dir(), data).with_superuser(superuser.trim());
        let cluster = DebianCluster { name, own, server };
        // Without TCP and with a directory of its own for its socket, the usual port is free.
        let mut create = cluster.common("pg_createcluster", &["--start-conf=manual", "--port=5432"]);
        create.arg("--socketdir").arg(cluster.server.socket());
        if let Some(own) = &cluster.own {
            create.arg("--datadir").arg(cluster.server.data());
            create.arg("--logfile").arg(own.path().join("log"));
        }
        create.args([MAJOR, &cluster.name, "--", "--data-checksums", "--wal-segsize=1", "--no-sync"]);
        {
            let _alone = SHARED_DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
            pg::run(&mut create);
        }
        cluster.set("listen_addresses", "");
        cluster
    }

    /// One of postgresql-common's commands, which are run as whoever runs the test.
    fn common(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C.UTF-8").current_dir("/");
        if let Some(own) = &self.own {
            command.env("PG_CLUSTER_CONF_ROOT", own.path());
        }
        command
    }

    /// Its directory of configuration.
    fn configuration(&self) -> PathBuf {
        let root = self.own.as_ref().map_or_else(|| "/etc/postgresql".into(), |own| own.path().to_owned());
        root.join(MAJOR).join(&self.name)
    }

    /// Changes postgresql.conf.
    fn set(&self, setting: &str, value: &str) {
        pg::run(&mut self.common("pg_conftool", &[MAJOR, &self.name, "set", setting, value]));
    }

    /// Variables of the server and of what it runs, where Debian's administrators put them.
    fn set_environment(&self, variables: &[(String, String)]) {
        let lines = variables.iter().map(|(name, value)| format!("{name} = '{value}'\n"));
        let file = self.configuration().join("environment");
        std::fs::write(file, lines.collect::<String>()).expect("its environment");
    }

    fn start(&self) {
        pg::run(
            &mut self.common("pg_ctlcluster", &["--skip-systemctl-redirect", MAJOR, &self.name, "start"]),
        );
    }
}

impl Drop for DebianCluster {
    fn drop(&mut self) {
        let stop = ["--skip-systemctl-redirect", "--mode=immediate", MAJOR, &self.name, "stop"];
        // It may not be running.
        drop(self.common("pg_ctlcluster", &stop).output());
        let _alone = SHARED_DIRECTORIES.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = self.common("pg_dropcluster", &[MAJOR, &self.name]).output();
        let is_gone = dropped.as_ref().is_ok_and(|output| output.status.success());
        assert!(is_gone || std::thread::panicking(), "{dropped:?}");
    }
}

/// Archived and restored with no step by hand: no file of the restored directory is touched before it starts.
fn a_debian_cluster_is_archived_and_restored(store: &TestStore) {
    let cluster = DebianCluster::create();
    let primary = &cluster.server;
    let zenith = |program: &str, arguments: &[&str]| {
        let mut command = pg::command(zenith_bin(program));
        command.args(arguments).envs(store.env()).env("PGHOST", primary.socket());
        println!("{program} {arguments:?}\n{}", pg::run(&mut command));
    };
    cluster.set_environment(&store.env());
    cluster.set("archive_mode", "on");
    cluster.set("archive_command", &format!("{} wal \"%p\"", zenith_bin("zenith_push").display()));
    cluster.set("max_connections", "137");
    cluster.set("max_prepared_transactions", "7");
    cluster.set("fsync", "off");
    cluster.start();
    assert!(!primary.data().join("postgresql.conf").exists(), "Debian keeps it in /etc");
    primary.sql("ALTER SYSTEM SET work_mem = '5MB'");
    primary.sql("CREATE TABLE markers AS SELECT generate_series(1, 1000) AS step");
    zenith("zenith_push", &["base", "--checkpoint=fast"]);
    primary.script(
        "postgres",
        "CREATE INDEX ON markers (step);
         DELETE FROM markers WHERE step % 7 = 0;
         BEGIN; INSERT INTO markers VALUES (2000); PREPARE TRANSACTION 'p';",
    );
    let before = dump(primary);
    archive(primary);
    zenith("zenith_slicedice", &[]);

    let home = pg::server_dir();
    let data = home.path().join("data");
    zenith("zenith_restore", &["-D", data.to_str().expect("text")]);
    let restored = Pg::adopt(home, data).with_superuser(primary.superuser());
    tools_accept(&restored);
    restored.start();
    same_dump_as_of_the_primary(&dump(&restored), &before);
    let setting = |name: &str| restored.sql(&format!("SHOW {name}"));
    assert_eq!(setting("config_file"), restored.data().join("postgresql.conf").display().to_string());
    assert_eq!(setting("hba_file"), restored.data().join("pg_hba.conf").display().to_string());
    assert_eq!(
        (setting("max_connections"), setting("max_prepared_transactions")),
        ("137".into(), "7".into())
    );
    assert_eq!((setting("work_mem"), setting("archive_mode")), ("5MB".into(), "off".into()));
    goes_on_after_a_crash(&restored);
}

#[test]
fn a_cluster_of_pg_createcluster_is_archived_to_a_folder_and_restored_with_no_step_by_hand() {
    a_debian_cluster_is_archived_and_restored(&TestStore::folder());
}

#[test]
fn a_cluster_of_pg_createcluster_is_archived_to_minio_and_restored_with_no_step_by_hand() {
    a_debian_cluster_is_archived_and_restored(&TestStore::minio());
}
