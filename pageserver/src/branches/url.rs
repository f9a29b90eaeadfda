//! The URL of a branch.
//!
//! The branch is named by its label behind the role: every client keeps that, also across `\\c` and
//! `createdb`. Where the branches have a domain, the host name alone does it.

use super::{Branches, labels};
use crate::error::Result;
use crate::secret::Secret;
use crate::storage::catalog::BranchRecord;
use api::percent::encode;

impl Branches {
    /// The URL of a database of a branch, with the password if the server set it.
    pub fn connection(
        &self,
        name: &str,
        database: Option<&str>,
        role: Option<&str>,
    ) -> Result<Secret> {
        let record = self.record(name)?;
        let role = role.unwrap_or(&record.login.role);
        let password = record.password.as_ref().filter(|_| role == record.login.role);
        Ok(self.url((name, &record), database, role, password))
    }

    /// The URL of a database of a branch for a role with this password.
    pub(super) fn url(
        &self,
        (name, record): (&str, &BranchRecord),
        database: Option<&str>,
        role: &str,
        password: Option<&Secret>,
    ) -> Secret {
        let secret = password.map(|password| format!(":{}", encode(password.expose())));
        let secret = secret.unwrap_or_default();
        let (role, label) = (encode(role), labels::of(name, record));
        let database = encode(database.unwrap_or(&record.login.database));
        let address = &self.about.proxy_address;
        let url = match &self.about.domain {
            None => format!("postgresql://{role}.{label}{secret}@{address}/{database}"),
            // Without TLS the server would not see the host name.
            Some(domain) => {
                let port = address.rsplit_once(':').map_or("", |(_, port)| port);
                format!(
                    "postgresql://{role}{secret}@{label}.{domain}:{port}/{database}?sslmode=require"
                )
            }
        };
        url.into()
    }
}
