//! The options of a store: what the clouds' usual environment variables and a configuration file say.

use std::collections::BTreeMap;
use std::fmt;

/// How options of S3 begin.
pub(crate) const AWS: &[&str] = &["aws_"];
/// How options of Azure begin; the second is what its managed identities set.
pub(crate) const AZURE: &[&str] = &["azure_", "identity_endpoint"];
/// How options of Google Cloud Storage begin.
pub(crate) const GOOGLE: &[&str] = &["google_", "service_account"];

/// Whether an option belongs to one of these clouds.
pub(crate) fn belongs_to(name: &str, clouds: &[&[&str]]) -> bool {
    clouds.iter().copied().flatten().any(|prefix| name.starts_with(prefix))
}

/// Options of a store by name, lower case: `aws_access_key_id`, `aws_endpoint_url`, `aws_allow_http` and so on.
///
/// What a configuration file says ([`StoreSettings::set`]) goes before the environment: `archive_command`
/// inherits the environment of a server that may have been started before a key was changed.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct StoreSettings {
    from_environment: BTreeMap<String, String>,
    from_file: BTreeMap<String, String>,
    create_folder: bool,
    new_folder_owner: Option<(u32, u32)>,
}

impl StoreSettings {
    /// What the process's environment says.
    pub fn from_environment() -> StoreSettings {
        StoreSettings::from_variables(
            std::env::vars_os()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?))),
        )
    }

    /// What these environment variables say; those that belong to no cloud are passed over.
    pub fn from_variables(variables: impl IntoIterator<Item = (String, String)>) -> StoreSettings {
        let mut settings = StoreSettings::default();
        for (name, value) in variables {
            let name = name.to_ascii_lowercase();
            if belongs_to(&name, &[AWS, AZURE, GOOGLE]) {
                settings.from_environment.insert(name, value);
            }
        }
        settings
    }

    /// Sets one option, as a configuration file names it. A name that the store does not know is an error when
    /// the store is opened.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<String>) -> StoreSettings {
        self.from_file.insert(name.to_ascii_lowercase(), value.into());
        self
    }

    /// A writer creates the directory of a folder store that does not exist yet; a reader must not.
    #[must_use]
    pub fn create_folder(mut self, create: bool) -> StoreSettings {
        self.create_folder = create;
        self
    }

    /// The user and group, by their numbers, to whom a folder is given that root creates.
    #[must_use]
    pub fn new_folder_owner(mut self, uid: u32, gid: u32) -> StoreSettings {
        self.new_folder_owner = Some((uid, gid));
        self
    }

    pub(crate) fn owner_of_new_folder(&self) -> Option<(u32, u32)> {
        self.new_folder_owner
    }

    pub(crate) fn may_create_folder(&self) -> bool {
        self.create_folder
    }

    /// The options that, besides its URL, decide which store is meant: the same bucket may be on another server.
    pub fn place(&self) -> impl Iterator<Item = (&str, &str)> {
        let decides =
            |name: &str| ["endpoint", "account_name", "emulator"].iter().any(|part| name.contains(part));
        self.options().filter(move |(name, ..)| decides(name)).map(|(name, value, _)| (name, value))
    }

    /// In the order in which they apply; `true` where an unknown name is an error.
    pub(crate) fn options(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        let environment = self.from_environment.iter().map(|(name, value)| (&**name, &**value, false));
        environment.chain(self.from_file.iter().map(|(name, value)| (&**name, &**value, true)))
    }
}

impl fmt::Debug for StoreSettings {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreSettings")
            .field("from_environment", &self.from_environment.keys())
            .field("from_file", &self.from_file.keys())
            .field("create_folder", &self.create_folder)
            .field("new_folder_owner", &self.new_folder_owner)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_never_shows_in_debug() {
        let variables = [("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())];
        let settings = StoreSettings::from_variables(variables).set("azure_storage_account_key", "hunter3");
        let text = format!("{settings:?}");
        assert!(
            text.contains("aws_secret_access_key") && text.contains("azure_storage_account_key"),
            "{text}"
        );
        assert!(!text.contains("hunter"), "{text}");
    }

    #[test]
    fn another_server_is_another_place_and_another_key_is_not() {
        let at = |endpoint: &str, key: &str| {
            StoreSettings::default().set("aws_endpoint_url", endpoint).set("aws_access_key_id", key)
        };
        let place = |settings: &StoreSettings| format!("{:?}", settings.place().collect::<Vec<_>>());
        assert_eq!(place(&at("https://a", "1")), place(&at("https://a", "2")));
        assert_ne!(place(&at("https://a", "1")), place(&at("https://b", "1")));
    }

    #[test]
    fn a_configuration_file_goes_before_the_environment() {
        let variables = [("AWS_REGION".to_owned(), "old".to_owned()), ("HOME".to_owned(), "/".to_owned())];
        let settings = StoreSettings::from_variables(variables).set("AWS_REGION", "new");
        let options: Vec<_> = settings.options().collect();
        assert_eq!(options, [("aws_region", "old", false), ("aws_region", "new", true)]);
    }
}
