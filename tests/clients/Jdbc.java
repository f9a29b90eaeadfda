// JDBC. Its URL has no place for a user and a password: they are parameters.

import java.net.URI;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.SQLException;

public class Jdbc {
    private static final String PLACE = "select name from place";

    /** The URL of JDBC with the parts of a URL that `branchctl url` prints. */
    private static String jdbc(String url) {
        URI uri = URI.create(url);
        String[] login = uri.getUserInfo().split(":", 2);
        return "jdbc:postgresql://" + uri.getHost() + ":" + uri.getPort() + uri.getPath()
            + "?user=" + login[0] + "&password=" + login[1];
    }

    private static String ask(String url, String sql) throws SQLException {
        try (var session = DriverManager.getConnection(url);
                var rows = session.createStatement().executeQuery(sql)) {
            rows.next();
            return rows.getString(1);
        }
    }

    private static void expect(String what, String found, String expected) {
        if (!expected.equals(found)) {
            System.out.println(what + ": \"" + expected + "\" was expected, not \"" + found + "\"");
            System.exit(1);
        }
    }

    public static void main(String[] args) throws SQLException {
        String url = jdbc(System.getenv("URL"));
        String client = System.getenv("CLIENT");
        try (Connection session = DriverManager.getConnection(url)) {
            System.out.println(session.getMetaData().getDriverVersion()
                + ", Java " + Runtime.version().feature());
            session.createStatement().execute("create table made (client text)");
            var insert = session.prepareStatement("insert into made values (?)");
            insert.setString(1, client);
            insert.execute();
        }
        expect("the row", ask(url, "select client from made"), client);
        expect("the URL", ask(url, PLACE), "feature/login");
        expect("the other branch", ask(jdbc(System.getenv("OTHER_URL")), PLACE), "other");

        expect("sslmode=require", ask(url + "&sslmode=require", PLACE), "feature/login");
        String verified = jdbc(System.getenv("HOST_URL"))
            + "&sslmode=verify-full&sslrootcert=" + System.getenv("CA_FILE");
        expect("sslmode=verify-full", ask(verified, PLACE), "feature/login");
    }
}
