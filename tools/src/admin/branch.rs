//! `zenith branch`: makes, lists, deletes and renames branches.

use crate::cli::interrupt::Interruptible;
use crate::cli::{Session, Settings, output, reading, time};
use crate::restore_command::describe;
use anyhow::Context;
use clap::{Args, Subcommand};
use jiff::tz::TimeZone;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::str::FromStr;
use zenith_manifest::{Ancestor, Branch, Deleted, Known};
use zenith_pgformat::Lsn;
use zenith_reader::{Resolved, Target};
use zenith_store::{Env, TimelineId};

/// Options of `zenith branch`.
#[derive(Args, Debug, Clone)]
pub struct BranchArgs {
    /// Without one: the tree.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What is done with branches.
#[derive(Subcommand, Debug, Clone)]
pub enum Command {
    /// Makes a branch: a timeline that goes on where another one stood. No data is copied
    #[command(after_help = "\
Examples:
  zenith branch create test
  zenith branch create test --from main --at 0/3000148
  zenith branch create before --at '2026-11-22 14:02:59+01'
  zenith branch create upgrade --at before_upgrade
  zenith_restore -D data --timeline test --as test_server

--at takes an LSN, else a time, else the name of a restore point; they mean what they mean for zenith_restore. A branch point
before a branch's own WAL is one of what that branch was made off, which becomes the parent. Archived WAL that is not sliced
yet counts: it is sliced into a temporary folder (TMPDIR) to find the end of a transaction, and the
branch can be read once zenith_slicedice has come so far, or by whoever slices it for himself, as zenith_restore does.")]
    Create(CreateArgs),
    /// Shows the tree of branches, as `zenith branch` alone does
    List,
    /// Gives up a branch that has no branches of its own
    #[command(after_help = "\
The name is free at once. A server that archives to the branch by its id goes on archiving: stop it first.")]
    Delete {
        /// Its name
        name: String,
    },
    /// Gives a timeline another name
    #[command(after_help = "\
A server that archives by the old name (zenith_push without --timeline-id) fails to archive from then on, until its
archive_command has the new one; nothing is lost meanwhile.")]
    Rename {
        /// Its name
        from: String,
        /// Its new name
        to: String,
    },
}

/// Options of `zenith branch create`.
#[derive(Args, Debug, Clone)]
pub struct CreateArgs {
    /// The name of the branch
    pub name: String,
    /// The timeline to branch off, by name; beats --timeline and --timeline-id, which it defaults to
    #[arg(long, value_name = "NAME")]
    pub from: Option<String>,
    /// An LSN, a time or the name of a restore point [default: the end of what is archived]
    #[arg(long, value_name = "LSN|TIME|NAME", value_parser = parse_at)]
    pub at: Option<At>,
}

/// What `--at` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At {
    target: Target,
    /// Why it was not taken for a time.
    no_time: Option<String>,
}

fn parse_at(text: &str) -> Result<At, String> {
    if let Ok(lsn) = Lsn::from_str(text) {
        return Ok(At { target: Target::Lsn(lsn), no_time: None });
    }
    Ok(match time::parse(text, &TimeZone::system()) {
        Ok(time) => At { target: Target::Time(time), no_time: None },
        Err(reason) => At { target: Target::Name(text.to_owned()), no_time: Some(reason) },
    })
}

/// Does what is asked. A signal may end the search for a branch point, and nothing that writes.
pub async fn run(
    env: &Env,
    settings: &Settings,
    args: &BranchArgs,
    work: &Interruptible,
) -> anyhow::Result<()> {
    let session = Session::open(env, settings, false)?;
    match &args.command {
        None | Some(Command::List) => work.unless_interrupted(list(&session, settings)).await,
        Some(Command::Create(args)) => create(&session, settings, args, work).await,
        Some(Command::Delete { name }) => {
            let Deleted { timeline, left } = session.names.delete_branch(name).await?;
            let text = match left.as_slice() {
                [] => format!("deleted branch \"{name}\" ({timeline})"),
                left => format!("gave up the name \"{name}\" of \"{}\" ({timeline})", left.join(", ")),
            };
            done(settings, name, timeline, &text)
        }
        Some(Command::Rename { from, to }) => {
            let id = session.names.rename(from, to).await?;
            done(settings, to, id, &format!("\"{from}\" is \"{to}\" now ({id})"))
        }
    }
}

fn done(settings: &Settings, name: &str, id: TimelineId, text: &str) -> anyhow::Result<()> {
    if settings.json {
        output::json(&serde_json::json!({ "name": name, "timeline": id.to_string() }))
    } else {
        output::line(text)
    }
}

async fn create(
    session: &Session,
    settings: &Settings,
    args: &CreateArgs,
    work: &Interruptible,
) -> anyhow::Result<()> {
    let free = async { Ok::<_, anyhow::Error>(session.names.check_free(&args.name, None).await?) };
    work.unless_interrupted(free).await?;
    let from = args.from.as_ref().map(|name| settings.with_timeline(name));
    let find = find(session, from.as_ref().unwrap_or(settings), args.at.as_ref(), work.scratch());
    let (parent, resolved) = work.unless_interrupted(find).await?;
    output::say(&describe::target(&resolved));
    let id = TimelineId(session.env.ids.fresh());
    let ancestor = Ancestor { timeline: parent, lsn: resolved.lsn, tli: resolved.tli };
    let branch = Branch::new(id, ancestor, resolved.last_record.start);
    let Ancestor { timeline: parent, lsn, .. } = session.names.create_branch(&args.name, &branch).await?;
    if settings.json {
        return output::json(&serde_json::json!({
            "name": args.name, "timeline": id.to_string(), "parent": parent.to_string(), "lsn": lsn,
        }));
    }
    output::line(&format!("created branch \"{}\" ({id}) off {parent} at {lsn}", args.name))
}

/// The timeline to branch off, and where.
async fn find(
    session: &Session,
    settings: &Settings,
    at: Option<&At>,
    scratch: &Path,
) -> anyhow::Result<(TimelineId, Resolved)> {
    let mut timeline = reading::open_in(session, settings, scratch).await?;
    let target = at.map_or(Target::Latest, |at| at.target.clone());
    let up_to = if let Target::Lsn(lsn) = target { Some(lsn) } else { None };
    reading::slice_what_is_not(&mut timeline, up_to).await?;
    let resolved = timeline.resolve(&target).await;
    let resolved = match at.and_then(|at| at.no_time.as_ref()) {
        Some(reason) => resolved.with_context(|| format!("--at is no LSN and no time ({reason})"))?,
        None => resolved?,
    };
    Ok((timeline.id(), resolved))
}

/// A timeline of the tree.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Listed {
    /// More than one while it is renamed; none where only its branches are left.
    names: Vec<String>,
    timeline: String,
    /// The timeline that it was branched off.
    parent: Option<String>,
    /// Where.
    lsn: Option<Lsn>,
}

async fn list(session: &Session, settings: &Settings) -> anyhow::Result<()> {
    let listed = gather(session).await?;
    if settings.json {
        return output::json(&listed);
    }
    match tree(&listed) {
        text if text.is_empty() => {
            output::say(&format!("cluster \"{}\" has no timelines yet", settings.cluster));
            Ok(())
        }
        text => output::line(text.trim_end()),
    }
}

async fn gather(session: &Session) -> anyhow::Result<Vec<Listed>> {
    let known = session.names.known().await?.into_iter();
    let mut listed: Vec<Listed> = known
        .map(|Known { identity, names }| Listed {
            names,
            timeline: identity.timeline.to_string(),
            parent: identity.ancestor.map(|ancestor| ancestor.timeline.to_string()),
            lsn: identity.ancestor.map(|ancestor| ancestor.lsn),
        })
        .collect();
    listed.sort_by(|a, b| (a.lsn, &a.names, &a.timeline).cmp(&(b.lsn, &b.names, &b.timeline)));
    Ok(listed)
}

/// The tree as text; branches by LSN below what they were branched off.
fn tree(listed: &[Listed]) -> String {
    let mut branches: BTreeMap<Option<&str>, Vec<&Listed>> = BTreeMap::new();
    for one in listed {
        branches.entry(one.parent.as_deref()).or_default().push(one);
    }
    // The last one first, each with what stands before it.
    let off = |parent: Option<&str>, lead: &str| -> Vec<(&Listed, String, bool)> {
        let branches = branches.get(&parent).map_or(&[][..], Vec::as_slice).iter().rev().enumerate();
        branches.map(|(at, one)| (*one, lead.to_owned(), at == 0)).collect()
    };
    let mut text = String::new();
    let mut next = off(None, "");
    while let Some((one, lead, is_last)) = next.pop() {
        let below = match one.lsn {
            None => {
                text.push_str(&format!("{}\n", one.label()));
                String::new()
            }
            Some(lsn) => {
                let corner = if is_last { "┗━" } else { "┣━" };
                text.push_str(&format!("{lead}{corner} @{lsn}: {}\n", one.label()));
                format!("{lead}{}", if is_last { "   " } else { "┃  " })
            }
        };
        next.extend(off(Some(&one.timeline), &below));
    }
    text
}

impl Listed {
    fn label(&self) -> String {
        match self.names.as_slice() {
            [] => format!("(deleted, {})", self.timeline),
            names => names.join(", "),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(name: &str, timeline: &str, parent: Option<(&str, u64)>) -> Listed {
        Listed {
            names: name.split(' ').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            timeline: timeline.to_owned(),
            parent: parent.map(|(parent, _)| parent.to_owned()),
            lsn: parent.map(|(_, lsn)| Lsn(lsn)),
        }
    }

    #[test]
    fn the_tree_shows_what_was_branched_off_where() {
        let all = [
            listed("main", "1", None),
            listed("other", "7", None),
            listed("a b", "2", Some(("1", 0x10))),
            listed("", "3", Some(("1", 0x20))),
            listed("c", "4", Some(("2", 0x30))),
            listed("d", "5", Some(("3", 0x40))),
        ];
        let expected = "\
main
┣━ @0/10: a, b
┃  ┗━ @0/30: c
┗━ @0/20: (deleted, 3)
   ┗━ @0/40: d
other
";
        assert_eq!(tree(&all), expected);
        assert_eq!(tree(&[]), "");
    }

    #[test]
    fn at_is_an_lsn_else_a_time_else_a_name() {
        assert_eq!(parse_at("0/10").map(|at| at.target), Ok(Target::Lsn(Lsn(0x10))));
        assert!(matches!(parse_at("2026-11-22 14:02:59+01").map(|at| at.target), Ok(Target::Time(_))));
        let name = parse_at("2026-11-22 25:00").expect("a name");
        assert_eq!(name.target, Target::Name("2026-11-22 25:00".to_owned()));
        assert!(name.no_time.is_some());
    }
}
