// Sequelize, over pg: a model whose table it makes.

const assert = require('node:assert/strict');
const { DataTypes, Sequelize } = require('sequelize');
const version = require('./node-version.cjs');

const { URL: url, OTHER_URL, CLIENT } = process.env;

async function place(address) {
    const db = new Sequelize(address, { logging: false });
    const [[{ name }]] = await db.query('select name from place');
    await db.close();
    return name;
}

async function main() {
    console.log(version('sequelize'));
    assert.equal(await place(url), 'feature/login');
    assert.equal(await place(OTHER_URL), 'other');
    assert.equal(await place(`${url}?sslmode=no-verify`), 'feature/login');

    const db = new Sequelize(url, { logging: false });
    const client = { type: DataTypes.TEXT, primaryKey: true };
    const Made = db.define('Made', { client }, { tableName: 'made', timestamps: false });
    await db.sync();
    await Made.create({ client: CLIENT });
    assert.equal((await Made.findOne()).client, CLIENT);
    await db.close();
}

main();
