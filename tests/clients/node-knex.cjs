// Knex, over pg: a migration, and a query.

const assert = require('node:assert/strict');
const knex = require('knex');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, CLIENT } = process.env;

async function place(connection) {
    const db = knex({ client: 'pg', connection });
    const { name } = await db('place').first();
    await db.destroy();
    return name;
}

// Migrations that are not files.
const migrationSource = {
    getMigrations: async () => ['0001_made'],
    getMigrationName: (migration) => migration,
    getMigration: async () => ({
        up: (db) => db.schema.createTable('made', (table) => table.text('client')),
        down: (db) => db.schema.dropTable('made'),
    }),
};

async function main() {
    console.log(version('knex'));
    assert.equal(await place(url), 'feature/login');
    assert.equal(await place(OTHER_URL), 'other');
    assert.equal(await place(`${url}?sslmode=no-verify`), 'feature/login');

    const db = knex({ client: 'pg', connection: url });
    await db.migrate.latest({ migrationSource });
    await db('made').insert({ client: CLIENT });
    assert.equal((await db('made').first()).client, CLIENT);
    await db.destroy();
}

main();
