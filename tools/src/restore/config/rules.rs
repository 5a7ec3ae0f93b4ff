//! Which settings cannot be right on the new server, and what they become.

use super::host::Host;
use super::parse::{is_on, list};
use super::{Change, Needs};
use std::collections::BTreeMap;
use std::path::Path;
use zenith_pgformat::control::WalLevel;

/// Settings that tie a server to its old place in a replication set-up. Emptied where they say anything.
const TIES: [(&str, &str); 14] = [
    ("archive_cleanup_command", "it works on the old server's archive"),
    ("archive_command", "a restored server must not write to the archive of the one it was restored from"),
    ("archive_library", "a restored server must not write to the archive of the one it was restored from"),
    ("primary_conninfo", "the restored server is no standby of the old one's primary"),
    ("primary_slot_name", "the restored server is no standby of the old one's primary"),
    ("promote_trigger_file", "the restored server is no standby"),
    ("recovery_end_command", "it belongs to an earlier recovery"),
    ("recovery_target", "it belongs to an earlier recovery"),
    ("recovery_target_lsn", "it belongs to an earlier recovery"),
    ("recovery_target_name", "it belongs to an earlier recovery"),
    ("recovery_target_time", "it belongs to an earlier recovery"),
    ("recovery_target_xid", "it belongs to an earlier recovery"),
    ("restore_command", "it belongs to the old server's archive"),
    ("synchronous_standby_names", "no standby is connected, and every commit would wait for one"),
];

/// Lists of libraries that the server or every session loads.
const LIBRARIES: [&str; 3] =
    ["shared_preload_libraries", "session_preload_libraries", "local_preload_libraries"];

/// Why a lazy compute's setting is as it is.
const UNTIL_FULL: &str = "needed until all pages are here";

/// Files that a server with `ssl = on` opens, with their default.
const SSL_FILES: [(&str, &str); 6] = [
    ("ssl_cert_file", "server.crt"),
    ("ssl_key_file", "server.key"),
    ("ssl_ca_file", ""),
    ("ssl_crl_file", ""),
    ("ssl_crl_dir", ""),
    ("ssl_dh_params_file", ""),
];

/// A path as an element of a list (`SplitDirectoriesString`).
fn element(path: &str) -> String {
    if path.contains([',', ' ', '"']) {
        format!("\"{}\"", path.replace('"', "\"\""))
    } else {
        path.to_owned()
    }
}

/// Looks at all settings and collects what has to change.
pub(crate) struct Judge<'a> {
    pub(crate) settings: &'a BTreeMap<String, String>,
    /// Paths that the restored directory will have.
    pub(crate) files: &'a dyn Fn(&str) -> bool,
    pub(crate) needs: &'a Needs,
    pub(crate) host: &'a dyn Host,
}

impl Judge<'_> {
    /// Changes that postgresql.auto.conf can make, in the order of this file.
    pub(crate) fn changes(&self) -> Vec<Change> {
        let mut changes = self.replication();
        changes.extend(self.limits());
        changes.extend(self.full_page_writes());
        changes.extend(LIBRARIES.iter().filter_map(|setting| self.libraries(setting)));
        changes.extend(self.ssl());
        changes.extend(self.sockets());
        changes.extend(self.addresses());
        changes.extend(self.log_directory());
        changes.extend(self.huge_pages());
        changes.extend(
            ["lc_messages", "lc_monetary", "lc_numeric", "lc_time"]
                .iter()
                .filter_map(|name| self.locale(name)),
        );
        changes
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.settings.get(name).map(String::as_str)
    }

    fn change(&self, name: &str, now: impl Into<String>, why: &str) -> Change {
        Change {
            setting: name.to_owned(),
            was: self.settings.get(name).cloned(),
            now: Some(now.into()),
            why: why.to_owned(),
        }
    }

    fn replication(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        if let Some(command) = &self.needs.archive_command {
            let why = "the restored server archives to its own timeline";
            changes.push(self.change("archive_mode", "on", why));
            changes.push(self.change("archive_command", command, why));
        } else if self
            .value("archive_mode")
            .is_some_and(|mode| is_on(mode) || mode.eq_ignore_ascii_case("always"))
        {
            changes.push(self.change(
                "archive_mode",
                "off",
                "a restored server has no archive until it is given one",
            ));
        }
        for (name, why) in TIES {
            let set = self.value(name).is_some_and(|value| !value.is_empty());
            if set && !changes.iter().any(|change| change.setting == name) {
                changes.push(self.change(name, "", why));
            }
        }
        // Not emptied: these have no empty value.
        let why = "it belongs to an earlier recovery";
        if self.value("recovery_target_timeline").is_some_and(|value| value != "latest") {
            changes.push(self.change("recovery_target_timeline", "latest", why));
        }
        if self
            .value("recovery_min_apply_delay")
            .is_some_and(|value| !value.trim_start_matches('0').is_empty())
        {
            changes.push(self.change("recovery_min_apply_delay", "0", why));
        }
        if self.needs.subscriptions {
            let why = "subscriptions stay asleep: they would take their changes away from the old server";
            changes.push(self.change("max_logical_replication_workers", "0", why));
        }
        changes
    }

    /// Limits as they were at the LSN; no lower than what is in use.
    fn limits(&self) -> Vec<Change> {
        let Needs { parameters, prepared, origins, .. } = self.needs;
        let prepared_limit = i64::from(parameters.max_prepared_transactions).max(*prepared as i64);
        let numbers = [
            ("max_connections", 100, i64::from(parameters.max_connections)),
            ("max_worker_processes", 8, i64::from(parameters.max_worker_processes)),
            ("max_wal_senders", 10, i64::from(parameters.max_wal_senders)),
            ("max_prepared_transactions", 0, prepared_limit),
            ("max_locks_per_transaction", 64, i64::from(parameters.max_locks_per_transaction)),
        ];
        let why = "as it was at the LSN that was restored";
        let mut changes = Vec::new();
        for (name, default, wanted) in numbers {
            if self.value(name).map_or(Some(default), |value| value.parse::<i64>().ok()) != Some(wanted) {
                changes.push(self.change(name, wanted.to_string(), why));
            }
        }
        let switches = [
            ("wal_log_hints", parameters.wal_log_hints),
            ("track_commit_timestamp", parameters.track_commit_timestamp),
        ];
        for (name, wanted) in switches {
            if self.value(name).is_some_and(is_on) != wanted
                && !(name == "wal_log_hints" && self.logs_hints())
            {
                changes.push(self.change(name, if wanted { "on" } else { "off" }, why));
            }
        }
        if self.logs_hints() && !self.value("wal_log_hints").is_some_and(is_on) {
            changes.push(self.change("wal_log_hints", "on", UNTIL_FULL));
        }
        changes.extend(self.wal_level(why));
        if self.value("max_replication_slots").map_or(Some(10), |value| value.parse::<usize>().ok())
            < Some(*origins)
        {
            let why = "each replication origin needs one";
            changes.push(self.change("max_replication_slots", origins.to_string(), why));
        }
        changes
    }

    /// Whether hint bits have to be logged for the pages' sake: a page that is on its way to a hole may be torn.
    fn logs_hints(&self) -> bool {
        self.needs.lazy.as_ref().is_some_and(|lazy| !lazy.checksums)
    }

    fn full_page_writes(&self) -> Option<Change> {
        let off = self.value("full_page_writes").is_some_and(|value| !is_on(value));
        (off && self.needs.lazy.is_some()).then(|| self.change("full_page_writes", "on", UNTIL_FULL))
    }

    fn wal_level(&self, why: &str) -> Option<Change> {
        let wanted =
            u32::try_from(self.needs.parameters.wal_level).ok().and_then(WalLevel::from_number)?.name();
        let set = self.value("wal_level").unwrap_or("replica").to_ascii_lowercase();
        let same =
            set == wanted || (wanted == "replica" && matches!(set.as_str(), "archive" | "hot_standby"));
        (!same).then(|| self.change("wal_level", wanted, why))
    }

    fn libraries(&self, setting: &str) -> Option<Change> {
        let names = self.value(setting).map(list).unwrap_or_default();
        let (missing, mut found): (Vec<String>, Vec<String>) =
            names.into_iter().partition(|name| self.is_missing(setting, name));
        let mut why = Vec::new();
        if let Some(lazy) = self.needs.lazy.as_ref().filter(|_| setting == LIBRARIES[0]) {
            found.insert(0, lazy.library.clone());
            why.push(UNTIL_FULL.to_owned());
        }
        if !missing.is_empty() {
            why.push(format!("not installed on this machine: {}", missing.join(", ")));
        }
        let found: Vec<String> = found.iter().map(|name| element(name)).collect();
        (!why.is_empty()).then(|| self.change(setting, found.join(", "), &why.join("; ")))
    }

    /// Whether a library is certainly not here. With a search path of its own a server may find it anywhere.
    fn is_missing(&self, setting: &str, name: &str) -> bool {
        if self.value("dynamic_library_path").is_some_and(|path| path != "$libdir") {
            return false;
        }
        let restricted = setting == "local_preload_libraries" && !name.contains('/');
        let name = if restricted { format!("plugins/{name}") } else { name.to_owned() };
        self.host.has_library(&name) == Some(false)
    }

    fn ssl(&self) -> Option<Change> {
        if !self.value("ssl").is_some_and(is_on) {
            return None;
        }
        let missing = SSL_FILES.iter().find_map(|(setting, default)| {
            let path = self.value(setting).unwrap_or(default);
            let there = path.is_empty()
                || if path.starts_with('/') { self.host.exists(Path::new(path)) } else { (self.files)(path) };
            (!there).then(|| format!("{setting} \"{path}\" does not exist here"))
        })?;
        Some(self.change("ssl", "off", &missing))
    }

    fn sockets(&self) -> Option<Change> {
        let setting = "unix_socket_directories";
        let directories = list(self.value(setting)?);
        let (there, missing): (Vec<String>, Vec<String>) = directories
            .into_iter()
            .partition(|directory| directory.starts_with('@') || self.host.exists(Path::new(directory)));
        if missing.is_empty() {
            return None;
        }
        let now = if there.is_empty() { "/tmp".to_owned() } else { there.join(", ") };
        Some(self.change(setting, now, &format!("does not exist here: {}", missing.join(", "))))
    }

    fn addresses(&self) -> Option<Change> {
        let setting = "listen_addresses";
        let addresses = list(self.value(setting)?);
        let known = |address: &String| {
            matches!(address.as_str(), "*" | "localhost" | "0.0.0.0" | "::") || self.host.can_listen(address)
        };
        let (there, missing): (Vec<String>, Vec<String>) = addresses.into_iter().partition(known);
        if missing.is_empty() {
            return None;
        }
        let now = if there.is_empty() { "localhost".to_owned() } else { there.join(", ") };
        Some(self.change(setting, now, &format!("not an address of this machine: {}", missing.join(", "))))
    }

    fn log_directory(&self) -> Option<Change> {
        let collects = self.value("logging_collector").is_some_and(is_on);
        let outside = self.value("log_directory").is_some_and(|path| path.starts_with('/'));
        (collects && outside)
            .then(|| self.change("log_directory", "log", "two servers must not share their logs"))
    }

    fn huge_pages(&self) -> Option<Change> {
        self.value("huge_pages")
            .is_some_and(is_on)
            .then(|| self.change("huge_pages", "try", "this machine may have none reserved"))
    }

    fn locale(&self, setting: &str) -> Option<Change> {
        let name = self.value(setting).filter(|name| !name.is_empty())?;
        (!self.host.has_locale(name))
            .then(|| self.change(setting, "C", "this machine does not have that locale"))
    }
}
