use super::*;
use std::path::Path;

/// A machine with what its fields name.
#[derive(Default)]
struct Machine {
    paths: Vec<&'static str>,
    libraries: Option<Vec<&'static str>>,
}

impl Host for Machine {
    fn exists(&self, path: &Path) -> bool {
        self.paths.iter().any(|there| Path::new(there) == path)
    }
    fn has_library(&self, name: &str) -> Option<bool> {
        Some(self.libraries.as_ref()?.contains(&name))
    }
    fn can_listen(&self, address: &str) -> bool {
        address == "127.0.0.1"
    }
    fn has_locale(&self, name: &str) -> bool {
        name == "C"
    }
}

fn needs() -> Needs {
    Needs {
        parameters: Parameters {
            max_connections: 100,
            max_worker_processes: 8,
            max_wal_senders: 10,
            max_prepared_transactions: 0,
            max_locks_per_transaction: 64,
            wal_level: 1,
            wal_log_hints: false,
            track_commit_timestamp: false,
        },
        prepared: 0,
        origins: 0,
        subscriptions: false,
        archive_command: None,
        lazy: None,
    }
}

/// Rewrites a configuration; returns postgresql.auto.conf and the settings that changed.
fn restored(conf: &str, needs: &Needs, machine: &Machine) -> (String, Vec<String>) {
    let mut kept = BTreeMap::new();
    for (path, text) in [("postgresql.conf", conf), ("pg_hba.conf", ""), ("pg_ident.conf", "")] {
        kept.insert(
            path.to_owned(),
            SmallFile { mode: 0o600, content: Bytes::copy_from_slice(text.as_bytes()) },
        );
    }
    let changes = rewrite(&mut kept, needs, machine, 0o600).expect("valid");
    let auto = String::from_utf8(kept["postgresql.auto.conf"].content.to_vec()).expect("text");
    (auto, changes.into_iter().map(|change| change.setting).collect())
}

#[test]
fn a_configuration_that_fits_stays_as_it_is() {
    let (auto, changes) = restored("port = 5433\nwork_mem = '4MB'\n", &needs(), &Machine::default());
    assert_eq!((auto.as_str(), changes.len()), ("", 0));
}

#[test]
fn ties_to_the_old_servers_world_are_cut_and_listed() {
    let conf = "archive_mode = on\narchive_command = 'cp %p /archive/%f'\nprimary_conninfo = 'host=a'\n\
        synchronous_standby_names = 'b'\nrecovery_target_xid = '5'\nrestore_command = 'x'\n";
    let (auto, changes) = restored(conf, &needs(), &Machine::default());
    let expected = [
        "archive_mode = 'off'",
        "archive_command = ''",
        "primary_conninfo = ''",
        "recovery_target_xid = ''",
        "restore_command = ''",
        "synchronous_standby_names = ''",
    ];
    assert_eq!(auto.lines().collect::<Vec<_>>(), expected);
    assert_eq!(changes.len(), expected.len());
}

#[test]
fn a_server_with_a_timeline_of_its_own_archives_there() {
    let needs = Needs { archive_command: Some("zenith_push wal '%p'".to_owned()), ..needs() };
    let (auto, _) = restored("archive_mode = on\narchive_library = 'old'\n", &needs, &Machine::default());
    assert!(auto.contains("archive_mode = 'on'\narchive_command = 'zenith_push wal ''%p'''\n"), "{auto}");
    assert!(auto.contains("archive_library = ''"), "the library would win over the command");
}

#[test]
fn limits_are_those_of_the_lsn_and_enough_for_what_is_prepared() {
    let mut needs = needs();
    needs.parameters.max_connections = 250;
    needs.parameters.track_commit_timestamp = true;
    needs.parameters.wal_level = 2;
    needs.prepared = 3;
    needs.origins = 12;
    let (auto, _) = restored("max_connections = 100\n", &needs, &Machine::default());
    for line in [
        "max_connections = '250'",
        "max_prepared_transactions = '3'",
        "track_commit_timestamp = 'on'",
        "wal_level = 'logical'",
        "max_replication_slots = '12'",
    ] {
        assert!(auto.contains(line), "{line} in {auto}");
    }
    assert_eq!(auto.lines().count(), 5);
}

#[test]
fn libraries_that_are_not_here_are_not_loaded() {
    let conf = "shared_preload_libraries = 'pg_stat_statements, timescaledb'\n";
    let machine = Machine { libraries: Some(vec!["pg_stat_statements"]), ..Machine::default() };
    let (auto, _) = restored(conf, &needs(), &machine);
    assert_eq!(auto, "shared_preload_libraries = 'pg_stat_statements'\n");
    let (auto, _) = restored(conf, &needs(), &Machine::default());
    assert_eq!(auto, "", "without a server here nobody knows");
    let conf = "shared_preload_libraries = 'x'\ndynamic_library_path = '/opt/lib:$libdir'\n";
    let (auto, _) = restored(conf, &needs(), &machine);
    assert_eq!(auto, "", "it may be in the other directory");
}

#[test]
fn what_this_machine_has_not_is_turned_off() {
    let conf = "ssl = on\nssl_cert_file = '/etc/ssl/a.pem'\nunix_socket_directories = '/run/pg, /gone'\n\
        listen_addresses = '127.0.0.1, 192.0.2.7'\nlogging_collector = on\nlog_directory = '/var/log/pg'\n\
        huge_pages = on\nlc_messages = 'xx_XX'\nlc_time = 'C'\n";
    let machine = Machine { paths: vec!["/run/pg"], ..Machine::default() };
    let (auto, _) = restored(conf, &needs(), &machine);
    let expected = [
        "ssl = 'off'",
        "unix_socket_directories = '/run/pg'",
        "listen_addresses = '127.0.0.1'",
        "log_directory = 'log'",
        "huge_pages = 'try'",
        "lc_messages = 'C'",
    ];
    assert_eq!(auto.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn subscriptions_stay_asleep() {
    let needs = Needs { subscriptions: true, ..needs() };
    let (auto, changes) = restored("", &needs, &Machine::default());
    assert_eq!(auto, "max_logical_replication_workers = '0'\n");
    assert_eq!(changes, ["max_logical_replication_workers"]);
}

#[test]
fn without_configuration_in_the_image_minimal_files_are_written_and_listed() {
    let mut kept = BTreeMap::new();
    let auto = "work_mem = '8MB'";
    kept.insert(
        AUTO_FILE.to_owned(),
        SmallFile { mode: 0o600, content: Bytes::from_static(auto.as_bytes()) },
    );
    let mut needs = needs();
    needs.parameters.max_connections = 20;
    let changes = rewrite(&mut kept, &needs, &Machine::default(), 0o640).expect("valid");
    assert_eq!(kept[AUTO_FILE].content, "work_mem = '8MB'\nmax_connections = '20'\n");
    for path in ["postgresql.conf", "pg_hba.conf", "pg_ident.conf"] {
        assert!(changes.iter().any(|change| change.setting == path), "{path}");
        assert_eq!(kept[path].mode, 0o640);
    }
}

#[test]
fn a_command_of_two_lines_is_refused() {
    let needs = Needs { archive_command: Some("a\nb".to_owned()), ..needs() };
    assert!(rewrite(&mut BTreeMap::new(), &needs, &Machine::default(), 0o600).is_err());
}

#[test]
fn a_change_reads_as_a_sentence() {
    let change = Change {
        setting: "ssl".to_owned(),
        was: Some("on".to_owned()),
        now: Some("off".to_owned()),
        why: "no certificate".to_owned(),
    };
    assert_eq!(change.to_string(), "ssl = 'off' (was 'on'): no certificate");
}

#[test]
fn an_included_file_is_followed_whatever_its_name() {
    let file = |text: &str| SmallFile { mode: 0o600, content: Bytes::copy_from_slice(text.as_bytes()) };
    let mut kept = BTreeMap::from([
        ("postgresql.conf".to_owned(), file("include 'memory.settings'\ninclude 'missing.settings'\n")),
        ("memory.settings".to_owned(), file("archive_mode = on\nhba_file = '/old/pg_hba.conf'\n")),
        ("server.key".to_owned(), file("archive_mode = always\n")),
    ]);
    let changes = rewrite(&mut kept, &needs(), &Machine::default(), 0o600).expect("valid");
    let text = |path: &str| String::from_utf8(kept[path].content.to_vec()).expect("text");
    assert!(text("postgresql.conf").starts_with("include 'memory.settings'\n# not on this server"));
    assert!(text("memory.settings").contains("# not on this server (zenith_restore): hba_file"));
    assert_eq!(text("postgresql.auto.conf"), "archive_mode = 'off'\n");
    assert!(
        changes.iter().any(|change| change.setting == "archive_mode" && change.was.as_deref() == Some("on"))
    );
    assert_eq!(text("server.key"), "archive_mode = always\n");
}

#[test]
fn an_earlier_recoverys_timeline_and_delay_do_not_rule_the_next_one() {
    let conf = "recovery_target_timeline = 'current'\nrecovery_min_apply_delay = '1h'\n";
    let (auto, changes) = restored(conf, &needs(), &Machine::default());
    assert_eq!(auto, "recovery_target_timeline = 'latest'\nrecovery_min_apply_delay = '0'\n");
    assert_eq!(changes, ["recovery_target_timeline", "recovery_min_apply_delay"]);
    let conf = "recovery_target_timeline = 'latest'\nrecovery_min_apply_delay = 0\n";
    assert_eq!(restored(conf, &needs(), &Machine::default()).0, "");
}

#[test]
fn a_lazy_server_loads_its_library_and_logs_what_a_torn_page_needs() {
    let lazy = |checksums| {
        let library = "/opt/zen ith/libzenith_compute.so".to_owned();
        Needs { lazy: Some(LazyNeeds { library, checksums }), ..needs() }
    };
    let (auto, changes) = restored("", &lazy(true), &Machine::default());
    let library = "\"/opt/zen ith/libzenith_compute.so\"";
    assert_eq!(auto, format!("shared_preload_libraries = '{library}'\n"));
    assert_eq!(changes, ["shared_preload_libraries"]);
    let conf = "full_page_writes = off\nshared_preload_libraries = 'auto_explain, pg_gone'\n";
    let machine = Machine { libraries: Some(vec!["auto_explain"]), ..Machine::default() };
    let (auto, _) = restored(conf, &lazy(false), &machine);
    let expected = [
        "wal_log_hints = 'on'".to_owned(),
        "full_page_writes = 'on'".to_owned(),
        format!("shared_preload_libraries = '{library}, auto_explain'"),
    ];
    assert_eq!(auto.lines().collect::<Vec<_>>(), expected);
}

#[test]
fn hints_that_are_logged_already_stay_logged_on_a_lazy_server() {
    let parameters = Parameters { wal_log_hints: true, ..needs().parameters };
    let lazy = LazyNeeds { library: "/l.so".to_owned(), checksums: false };
    let needs = Needs { parameters, lazy: Some(lazy), ..needs() };
    let (auto, _) = restored("wal_log_hints = on\n", &needs, &Machine::default());
    assert_eq!(auto, "shared_preload_libraries = '/l.so'\n");
}
