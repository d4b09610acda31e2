//! A certificate authority for one test, with its files in a temporary folder.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType, IsCa, Issuer,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tempfile::TempDir;

/// See the module comment.
pub(super) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    folder: TempDir,
}

/// A certificate and its key in files.
pub(super) struct Files {
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

impl Authority {
    pub(super) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(folder.path().join("ca.pem"), certificate.pem()).unwrap();
        Self { issuer: Issuer::new(params, key), folder }
    }

    /// Its own certificate.
    pub(super) fn file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// For a server called `localhost`, `127.0.0.1` and `name`.
    pub(super) fn server(&self, name: &str) -> Files {
        self.certify(name, |params| {
            let names = ["localhost".to_owned(), "127.0.0.1".to_owned(), name.to_owned()];
            params.subject_alt_names = CertificateParams::new(names).unwrap().subject_alt_names;
        })
    }

    /// For a client with this common name.
    pub(super) fn client(&self, name: &str) -> Files {
        self.certify(name, |_| ())
    }

    /// Not valid any more.
    pub(super) fn expired(&self, name: &str) -> Files {
        self.certify(name, |params| {
            params.not_before = date_time_ymd(2000, 1, 1);
            params.not_after = date_time_ymd(2001, 1, 1);
        })
    }

    /// Valid for so many seconds more.
    pub(super) fn expiring_in(&self, name: &str, seconds: u64) -> Files {
        self.certify(name, |params| {
            params.not_after = (SystemTime::now() + Duration::from_secs(seconds)).into();
        })
    }

    fn certify(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Files {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(serial(name));
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let files = Files {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
        };
        fs::write(&files.certificate, certificate.pem()).unwrap();
        fs::write(&files.key, key.serialize_pem()).unwrap();
        fs::set_permissions(&files.key, Permissions::from_mode(0o600)).unwrap();
        files
    }

    /// A list that revokes the certificates of these names.
    pub(super) fn revoke(&self, names: &[&str]) -> PathBuf {
        let revoked = |name: &&str| RevokedCertParams {
            serial_number: serial(name),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(4000, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: names.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let path = self.path("crl.pem");
        fs::write(&path, params.signed_by(&self.issuer).unwrap().pem().unwrap()).unwrap();
        path
    }

    /// The certificate of [`Authority::server`].
    pub(super) fn server_file(&self, name: &str) -> PathBuf {
        self.path(&format!("{name}.pem"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Files {
    /// The lines of a listener.
    pub(super) fn settings(&self) -> String {
        let (certificate, key) = (self.certificate.display(), self.key.display());
        format!("certificate_file = '{certificate}'\nkey_file = '{key}'\n")
    }

    /// The arguments of mosquitto's clients.
    pub(super) fn arguments(&self) -> [&str; 4] {
        ["--cert", text(&self.certificate), "--key", text(&self.key)]
    }
}

pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn serial(name: &str) -> SerialNumber {
    SerialNumber::from_slice(name.as_bytes())
}
