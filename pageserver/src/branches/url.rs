//! The URL of a branch.

use super::Branches;
use crate::error::Result;
use crate::secret::Secret;
use api::percent::encode;

/// Role whose password the server knows.
pub(super) const SUPERUSER: &str = "postgres";
/// Database that a first start makes.
const DATABASE: &str = "app";

impl Branches {
    /// The URL of a database of a branch, with the password if the server set it.
    pub fn connection(
        &self,
        name: &str,
        database: Option<&str>,
        role: Option<&str>,
    ) -> Result<Secret> {
        let record = self.record(name)?;
        let role = role.unwrap_or(SUPERUSER);
        let password = record.password.as_ref().filter(|_| role == SUPERUSER);
        Ok(self.url(name, database, role, password))
    }

    /// The URL of a database of a branch for a role with this password.
    pub(super) fn url(
        &self,
        name: &str,
        database: Option<&str>,
        role: &str,
        password: Option<&Secret>,
    ) -> Secret {
        let secret = password.map(|password| format!(":{}", encode(password.expose())));
        let database = encode(&format!("{}@{name}", database.unwrap_or(DATABASE)));
        let url = format!(
            "postgresql://{}{}@{}/{database}",
            encode(role),
            secret.unwrap_or_default(),
            self.about.proxy_address
        );
        url.into()
    }
}
