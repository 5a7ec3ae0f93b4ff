//! The configuration files of the base image, and what they say together.

use super::parse::{self, Line};
use std::collections::BTreeMap;

/// The file that the server reads first.
pub(crate) const MAIN_FILE: &str = "postgresql.conf";
/// The file that `ALTER SYSTEM` writes; read last, so that it wins.
pub(crate) const AUTO_FILE: &str = "postgresql.auto.conf";
/// `CONF_FILE_MAX_DEPTH` (conffiles.h).
const MAX_DEPTH: usize = 10;

/// Settings that name a place of the old server. A line in postgresql.auto.conf cannot undo them, because they are
/// needed before it is read or are taken relative to the directory that the server is started in.
pub(crate) const PLACES: [&str; 4] = ["data_directory", "external_pid_file", "hba_file", "ident_file"];

/// The files with the lines that cannot stay taken out, and what the rest says.
#[derive(Debug, Default)]
pub(crate) struct Files {
    /// The files to be written, by path.
    pub(crate) texts: BTreeMap<String, String>,
    /// Every setting's last value.
    pub(crate) settings: BTreeMap<String, String>,
    /// Lines that were taken out: name or directive, and value.
    pub(crate) removed: Vec<(String, String)>,
}

impl Files {
    /// Reads postgresql.conf, what it includes, and postgresql.auto.conf, out of `image`.
    pub(crate) fn read(image: &BTreeMap<String, String>) -> Files {
        let mut files = Files::default();
        for file in [MAIN_FILE, AUTO_FILE] {
            files.read_file(image, file, 0);
        }
        files
    }

    fn read_file(&mut self, image: &BTreeMap<String, String>, path: &str, depth: usize) {
        let Some(text) = image.get(path) else { return };
        let mut kept = String::with_capacity(text.len());
        for line in text.lines() {
            let keep = match parse::line(line) {
                Line::Other => true,
                Line::Setting(name, value) => self.setting(name, value),
                Line::Include(directive, included) => self.include(image, path, &directive, &included, depth),
            };
            if !keep {
                kept.push_str("# not on this server (zenith_restore): ");
            }
            kept.push_str(line);
            kept.push('\n');
        }
        self.texts.insert(path.to_owned(), kept);
    }

    fn setting(&mut self, name: String, value: String) -> bool {
        if PLACES.contains(&name.as_str()) {
            self.removed.push((name, value));
            return false;
        }
        self.settings.insert(name, value);
        true
    }

    /// Follows an include. One that leads out of the image is taken out: what is there now is not what was there.
    fn include(
        &mut self,
        image: &BTreeMap<String, String>,
        from: &str,
        directive: &str,
        included: &str,
        depth: usize,
    ) -> bool {
        let target = beside(from, included).filter(|_| depth < MAX_DEPTH);
        let found: Vec<&String> = match (&target, directive) {
            (Some(directory), "include_dir") => files_in(image, directory),
            (Some(file), _) => image.get_key_value(file).map(|(path, _)| path).into_iter().collect(),
            (None, _) => Vec::new(),
        };
        if found.is_empty() {
            self.removed.push((directive.to_owned(), included.to_owned()));
            return false;
        }
        for file in found {
            self.read_file(image, file, depth + 1);
        }
        true
    }
}

/// A path relative to the file that names it; `None` when it leads out of the data directory.
fn beside(file: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    if path.starts_with('/') {
        return None;
    }
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The files that `include_dir` reads: names that end in `.conf` and do not begin with a dot, in order.
fn files_in<'a>(image: &'a BTreeMap<String, String>, directory: &str) -> Vec<&'a String> {
    let inside = |path: &&String| {
        path.strip_prefix(directory)
            .and_then(|rest| rest.strip_prefix('/'))
            .is_some_and(|name| !name.contains('/') && !name.starts_with('.') && name.ends_with(".conf"))
    };
    image.keys().filter(inside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(files: &[(&str, &str)]) -> BTreeMap<String, String> {
        files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect()
    }

    #[test]
    fn the_last_value_wins_and_alter_system_is_last() {
        let files = Files::read(&image(&[
            ("postgresql.conf", "work_mem = 1MB\ninclude 'sub/more.conf'\nwork_mem = '3MB'\n"),
            ("sub/more.conf", "work_mem=2MB\nport = 1\ninclude_dir 'd'\n"),
            ("sub/d/a.conf", "jit = off\n"),
            ("sub/d/b.txt", "jit = on\n"),
            ("postgresql.auto.conf", "port = '2'\n"),
        ]));
        let value = |name: &str| files.settings.get(name).map(String::as_str);
        assert_eq!((value("work_mem"), value("port"), value("jit")), (Some("3MB"), Some("2"), Some("off")));
        assert!(files.removed.is_empty());
        assert_eq!(files.texts.len(), 4, "files that are not read are not rewritten");
    }

    #[test]
    fn places_of_the_old_server_are_taken_out_and_everything_else_stays() {
        let text = "# mine\ndata_directory = '/old'\nHBA_FILE='/etc/hba'\nwork_mem = 1MB\n";
        let files = Files::read(&image(&[("postgresql.conf", text)]));
        let expected = "# mine\n# not on this server (zenith_restore): data_directory = '/old'\n\
            # not on this server (zenith_restore): HBA_FILE='/etc/hba'\nwork_mem = 1MB\n";
        assert_eq!(files.texts["postgresql.conf"], expected);
        assert_eq!(files.removed.len(), 2);
        assert!(!files.settings.contains_key("data_directory"));
    }

    #[test]
    fn an_include_that_leads_out_of_the_image_is_taken_out() {
        for path in ["/etc/x.conf", "../x.conf", "missing.conf"] {
            let files = Files::read(&image(&[("postgresql.conf", &format!("include '{path}'\n"))]));
            assert_eq!(files.removed, [("include".to_owned(), path.to_owned())]);
            assert!(files.texts["postgresql.conf"].starts_with('#'));
        }
    }

    #[test]
    fn files_that_include_each_other_come_to_an_end() {
        let files = Files::read(&image(&[("postgresql.conf", "include 'postgresql.conf'\n")]));
        assert_eq!(files.removed.len(), 1);
    }
}
