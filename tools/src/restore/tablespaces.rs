//! Tablespaces: where their files go, and the links that lead there.

use super::layout::{Target, Undo};
use anyhow::{Context, Result, bail};
use std::path::{Path, PathBuf};
use zenith_pgformat::Oid;
use zenith_pgformat::rel::TABLESPACE_VERSION_DIRECTORY;

/// `-T OLD=NEW`: a tablespace that was at `old` is written to `new`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TablespaceMapping {
    /// Its location when the WAL was written.
    pub old: PathBuf,
    /// Where it goes.
    pub new: PathBuf,
}

impl TablespaceMapping {
    /// Parses `OLD=NEW` as pg_basebackup does: both absolute, `\=` is an equals sign in a path.
    pub fn parse(text: &str) -> Result<TablespaceMapping> {
        let mut parts = vec![String::new()];
        let mut chars = text.chars().peekable();
        while let Some(c) = chars.next() {
            match (c, chars.peek()) {
                ('\\', Some('=')) => {
                    chars.next();
                    parts.last_mut().into_iter().for_each(|part| part.push('='));
                }
                ('=', _) => parts.push(String::new()),
                _ => parts.last_mut().into_iter().for_each(|part| part.push(c)),
            }
        }
        let [old, new] = parts.as_slice() else {
            bail!("tablespace mapping \"{text}\" must read OLD=NEW (write \\= for an equals sign in a path)");
        };
        if !Path::new(old).is_absolute() || !Path::new(new).is_absolute() {
            bail!("tablespace mapping \"{text}\": both directories must be absolute");
        }
        Ok(TablespaceMapping { old: clean(old), new: clean(new) })
    }
}

/// Without trailing slashes and doubled ones (`canonicalize_path`, in part).
fn clean(path: &str) -> PathBuf {
    Path::new(path).components().collect()
}

/// One tablespace and its new place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The tablespace.
    pub oid: Oid,
    /// Where it was; not absolute for one inside the data directory.
    pub old: String,
    /// Where it goes; `None` inside the data directory.
    pub new: Option<PathBuf>,
}

/// Decides where each tablespace goes.
///
/// # Errors
/// A mapping that names none of them, two tablespaces at one place, one inside the data directory's own folders.
pub(crate) fn place(
    tablespaces: Vec<(Oid, String)>,
    mappings: &[TablespaceMapping],
    root: &Path,
) -> Result<Vec<Placed>> {
    for mapping in mappings {
        if !tablespaces.iter().any(|(_, location)| clean(location) == mapping.old) {
            let there: Vec<&str> = tablespaces.iter().map(|(_, location)| location.as_str()).collect();
            let there = if there.is_empty() { "there are none".to_owned() } else { there.join(", ") };
            bail!("no tablespace was at {}; those to map: {there}", mapping.old.display());
        }
    }
    let mut placed: Vec<Placed> = Vec::new();
    for (oid, old) in tablespaces {
        let mapping = mappings.iter().find(|mapping| clean(&old) == mapping.old);
        // One that is not absolute is inside the data directory (`allow_in_place_tablespaces`).
        let outside = Path::new(&old).is_absolute();
        let new = outside.then(|| mapping.map_or_else(|| clean(&old), |mapping| mapping.new.clone()));
        if let Some(new) = &new {
            if let Some(other) = placed.iter().find(|other| other.new.as_ref() == Some(new)) {
                bail!(
                    "tablespaces {} and {oid} would both go to {}: map one with -T OLD=NEW",
                    other.oid,
                    new.display()
                );
            }
            if root.starts_with(new) {
                bail!("tablespace {oid} would go to {}, which holds the data directory", new.display());
            }
            // Among the files of the server's own: two of one name, and every copy of the directory would hold it twice.
            if new.starts_with(root) {
                bail!(
                    "tablespace {oid} would go to {}, inside the data directory: map it elsewhere with -T {old}=NEW",
                    new.display()
                );
            }
        }
        placed.push(Placed { oid, old, new });
    }
    Ok(placed)
}

/// Makes the directories and their links.
pub(crate) fn make(target: &Target, tablespaces: &[Placed], undo: &mut Undo) -> Result<()> {
    for tablespace in tablespaces {
        let link = format!("pg_tblspc/{}", tablespace.oid);
        if let Some(new) = &tablespace.new {
            target.claim(new, "tablespace directory", undo).with_context(|| {
                format!("tablespace {} (map it elsewhere with -T {}=NEW)", tablespace.oid, tablespace.old)
            })?;
            target.link(&link, new)?;
        }
        target.make_directory(&format!("{link}/{TABLESPACE_VERSION_DIRECTORY}"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mappings_read_as_pg_basebackups_do() {
        let mapping = TablespaceMapping::parse(r"/a\=b/=/c//d").expect("valid");
        assert_eq!(mapping, TablespaceMapping { old: "/a=b".into(), new: "/c/d".into() });
        for text in ["", "/a", "/a=", "a=/b", "/a=b", "/a=/b=/c"] {
            assert!(TablespaceMapping::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_mapping_moves_its_tablespace_and_leaves_the_others() {
        let mapping = TablespaceMapping::parse("/old/=/new").expect("valid");
        let placed = place(
            vec![(16_400, "/old".to_owned()), (16_401, "/other".to_owned()), (16_402, String::new())],
            &[mapping],
            Path::new("/data"),
        )
        .expect("all fit");
        let places: Vec<_> = placed.iter().map(|placed| placed.new.as_deref()).collect();
        assert_eq!(places, [Some(Path::new("/new")), Some(Path::new("/other")), None]);
    }

    #[test]
    fn a_mapping_that_names_no_tablespace_is_refused() {
        let mapping = TablespaceMapping::parse("/odl=/new").expect("valid");
        let error =
            place(vec![(1, "/old".to_owned())], &[mapping], Path::new("/data")).expect_err("mistyped");
        assert!(error.to_string().contains("/old"), "{error}");
    }

    #[test]
    fn a_tablespace_does_not_go_among_the_files_of_the_data_directory() {
        for place_of in ["/data", "/data/base", "/data/mine", "/"] {
            let error = place(vec![(7, place_of.to_owned())], &[], Path::new("/data")).expect_err(place_of);
            assert!(
                error.to_string().starts_with(&format!("tablespace 7 would go to {place_of}")),
                "{error}"
            );
        }
        assert!(place(vec![(7, "/database".to_owned())], &[], Path::new("/data")).is_ok());
    }

    #[test]
    fn a_location_that_is_not_absolute_is_inside_the_data_directory() {
        let placed = place(vec![(7, "pg_tblspc/7".to_owned())], &[], Path::new("/data")).expect("in place");
        assert_eq!(placed[0].new, None);
    }

    #[test]
    fn two_tablespaces_cannot_share_a_place() {
        let mapping = TablespaceMapping::parse("/a=/b").expect("valid");
        let both = vec![(1, "/a".to_owned()), (2, "/b".to_owned())];
        assert!(place(both, &[mapping], Path::new("/data")).is_err());
        let around = vec![(1, "/srv".to_owned())];
        assert!(place(around, &[], Path::new("/srv/data")).is_err());
    }
}
